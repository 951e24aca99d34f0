// What the server is working on, and what became of it.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { get, send } from '/api.js';
import { Problem } from '/words.js';

const EVERY_MS = 2000;

export function Jobs() {
  const [all, setAll] = useState([]);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    const look = () => get('/api/jobs').then(found => { setAll(found.jobs.filter(one => !one.cached).slice(0, 8)); setProblem(null); }, setProblem);
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const act = (method, path) => send(method, path).catch(setProblem);
  return html`<section aria-label="Jobs">
    <${Problem} error=${problem} />
    ${all.length ? html`<ul>${all.map(one => html`<li key=${one.id}>
      <span class="kind">${one.kind}</span> <span class="state ${one.state}">${one.state}</span>
      ${one.state === 'running' && html`<progress value=${one.share ?? undefined} max="1" aria-label="Progress of ${one.kind}"></progress>
        <span>${one.description}${one.eta_seconds ? `, ${Math.ceil(one.eta_seconds)} s left` : ''}</span>`}
      ${one.error && html`<span class="why">${one.error.error}</span>`}
      ${['queued', 'running'].includes(one.state) && html`<button onClick=${() => act('DELETE', `/api/jobs/${one.id}`)}>Cancel</button>`}
      ${['interrupted', 'failed', 'cancelled'].includes(one.state) && html`<button onClick=${() => act('POST', `/api/jobs/${one.id}/again`)}>Run again</button>`}
    </li>`)}</ul>` : html`<p class="empty">Nothing was asked yet.</p>`}
  </section>`;
}
