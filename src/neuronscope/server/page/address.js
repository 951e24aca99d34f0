// The part of the address behind #: what is looked at, to be kept and shared.

export function looked(name) {
  return new URLSearchParams(location.hash.slice(1)).get(name);
}

export function look(changes) {
  const now = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === '') now.delete(name);
    else now.set(name, value);
  }
  history.replaceState(null, '', `#${now}`);
}
