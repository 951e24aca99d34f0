// Talks to the server. Every failure is an Error whose message is what the server said.

async function answered(response) {
  if (response.ok) return response;
  let said = null;
  try { said = await response.json(); } catch { /* not JSON: the status says it */ }
  const error = new Error(said?.error ?? `The server answered ${response.status}.`);
  error.details = said?.details ?? '';
  error.status = response.status;
  if (response.headers.has('X-Model')) dispatchEvent(new Event('other-model'));
  throw error;
}

// `unreachable` is told to the page once a request finds nobody, `reachable` once somebody answers again.
let gone = false;
const AGAIN_MS = 2000;

async function wait() {
  try { await fetch('/api/health'); } catch { setTimeout(wait, AGAIN_MS); return; }
  gone = false;
  dispatchEvent(new Event('reachable'));
}

// Which model this page is about: the server refuses what is meant for another one than it has.
let fingerprint = null;
export function about(card) { fingerprint = card.fingerprint; }

async function reach(path, options = {}) {
  const headers = { ...options.headers, ...(fingerprint && { 'X-Model': fingerprint }) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (cause) {
    if (cause.name === 'AbortError') throw cause;
    if (!gone) {
      gone = true;
      dispatchEvent(new Event('unreachable'));
      setTimeout(wait, AGAIN_MS);
    }
    const error = new Error('The server does not answer.');
    error.details = 'Is it still running? The page goes on as soon as it is back.';
    throw error;
  }
}

export async function get(path) {
  return (await answered(await reach(path))).json();
}

export async function floatsAndModel(path) {
  const response = await answered(await reach(path));
  return { values: new Float32Array(await response.arrayBuffer()), model: response.headers.get('X-Model') };
}

export const floats = async path => (await floatsAndModel(path)).values;

export async function send(method, path, body, headers = {}) {
  const options = { method, headers: { 'Content-Type': 'application/json', ...headers } };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await answered(await reach(path, options));
  return response.status === 204 ? null : response.json();
}

// Start a job, tell how far it is, and give its result. Aborting cancels the job.
export async function job(path, body, { method = 'POST', ...options } = {}) {
  return follow((await send(method, path, body, { Prefer: 'respond-async' })).id, options);
}

// The same for a job that was started before.
export async function follow(id, { signal, progress, partial } = {}) {
  const address = `/api/jobs/${encodeURIComponent(id)}`;
  if (signal?.aborted) {
    send('DELETE', address).catch(() => {});
    throw new DOMException('Superseded', 'AbortError');
  }
  await new Promise((resolve, reject) => {
    const events = new EventSource(`${address}/events`);
    const leave = () => {
      events.close();
      send('DELETE', address).catch(() => {});
      reject(new DOMException('Superseded', 'AbortError'));
    };
    signal?.addEventListener('abort', leave, { once: true });
    // The browser connects again by itself; this finds out whether there is anybody to connect to.
    events.addEventListener('error', () => { reach('/api/health').catch(() => {}); });
    events.addEventListener('progress', event => progress?.(JSON.parse(event.data)));
    events.addEventListener('partial', event => partial?.(JSON.parse(event.data)));
    events.addEventListener('state', event => {
      if (['queued', 'running'].includes(JSON.parse(event.data).state)) return;
      events.close();
      signal?.removeEventListener('abort', leave);
      resolve();
    });
  });
  return get(`${address}/result`);
}
