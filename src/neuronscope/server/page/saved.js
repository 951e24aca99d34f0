// Selections by name: kept on the server, exported, imported, held against each other.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { get, job, send } from '/api.js';
import { look, looked } from '/address.js';
import { textsOf } from '/simulation.js';
import { number, percent, Problem, signed, Working } from '/words.js';

export function Saved({ selection, card, edited, text }) {
  const [all, setAll] = useState([]);
  const [name, setName] = useState('');
  const [problem, setProblem] = useState(null);
  const [working, setWorking] = useState(null);
  const [compared, setCompared] = useState(null);
  const take = one => { selection.put(one.neurons); look({ selection: one.id }); edited(); };
  const load = () => get('/api/selections').then(found => { setAll(found.selections); return found.selections; }, setProblem);
  useEffect(() => {
    load().then(found => {
      const shared = found?.find(one => one.id === looked('selection') && one.fingerprint === card.fingerprint);
      if (shared) take(shared);
    });
  }, [card]);
  const tried = async act => {
    setProblem(null);
    try { await act(); } catch (error) { setProblem(error); }
    load();
  };
  const save = event => {
    event.preventDefault();
    tried(async () => {
      await send('POST', '/api/selections', { name, neurons: selection.sent() });
      setName('');
    });
  };
  const bring = event => tried(async () => {
    const [file] = event.target.files;
    if (!file) return;
    let read;
    try { read = JSON.parse(await file.text()); } catch { throw new Error(`${file.name} is not JSON.`); }
    await send('POST', '/api/selections/import', read);
  });
  const own = all.filter(one => one.fingerprint === card.fingerprint);
  const compare = async () => {
    setWorking({ description: 'comparing', share: null });
    try {
      const body = { selections: own.map(one => one.id) };
      if (text.trim()) body.input_texts = textsOf(text);
      setCompared((await job('/api/compare', body, { progress: setWorking })).selections);
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  return html`<section aria-label="Saved selections">
    <h2>Saved selections</h2>
    <${Problem} error=${problem} />
    <form class="row" onSubmit=${save}>
      <label>Name <input value=${name} maxlength="200" onInput=${event => setName(event.target.value)} /></label>
      <button disabled=${!name.trim() || !selection.count}>Save these ${number(selection.count)}</button>
      <label>Import <input type="file" accept="application/json,.json" onChange=${bring} /></label>
    </form>
    ${own.length ? html`<ul>${own.map(one => html`<li>
      <button class="link" onClick=${() => take(one)}>${one.name}</button>
      <span>${number(one.neurons.length)} neurons</span>
      ${compared?.[one.id] && html`<span>impact ${compared[one.id].impact_score.toFixed(3)}, loss ${signed(compared[one.id].metrics.loss_change)}, first choices that stay ${percent(compared[one.id].metrics.top1_agreement)}</span>`}
      <a href=${`/api/selections/${one.id}/export`} download aria-label=${`Export ${one.name}`}>export</a>
      <button onClick=${() => tried(() => send('DELETE', `/api/selections/${one.id}`))} aria-label=${`Forget ${one.name}`}>Forget</button></li>`)}</ul>
      <div class="row"><button onClick=${compare} disabled=${own.length < 2 || Boolean(working)}>Compare them</button></div>`
      : html`<p class="empty">None yet.</p>`}
    <${Working} on=${working} />
  </section>`;
}
