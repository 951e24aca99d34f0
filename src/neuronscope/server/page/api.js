// Talks to the server. Every failure is an Error whose message is what the server said.

async function answered(response) {
  if (response.ok) return response;
  let said = null;
  try { said = await response.json(); } catch { /* not JSON: the status says it */ }
  const error = new Error(said?.error ?? `The server answered ${response.status}.`);
  error.details = said?.details ?? '';
  error.status = response.status;
  throw error;
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (cause) {
    if (cause.name === 'AbortError') throw cause;
    const error = new Error('The server does not answer.');
    error.details = 'Is it still running?';
    throw error;
  }
}

export async function get(path) {
  return (await answered(await reach(path))).json();
}

export async function floats(path) {
  return new Float32Array(await (await answered(await reach(path))).arrayBuffer());
}

export async function send(method, path, body, headers = {}) {
  const options = { method, headers: { 'Content-Type': 'application/json', ...headers } };
  if (body !== undefined) options.body = JSON.stringify(body);
  const response = await answered(await reach(path, options));
  return response.status === 204 ? null : response.json();
}

// Start a job, tell how far it is, and give its result. Aborting cancels the job.
export async function job(path, body, { signal, progress, method = 'POST' } = {}) {
  const started = await send(method, path, body, { Prefer: 'respond-async' });
  const address = `/api/jobs/${encodeURIComponent(started.id)}`;
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
    events.addEventListener('progress', event => progress?.(JSON.parse(event.data)));
    events.addEventListener('state', event => {
      if (['queued', 'running'].includes(JSON.parse(event.data).state)) return;
      events.close();
      signal?.removeEventListener('abort', leave);
      resolve();
    });
  });
  return get(`${address}/result`);
}
