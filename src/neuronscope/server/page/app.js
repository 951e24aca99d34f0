// The page: the map of all neurons, the ones that are chosen, and what the model says without them.

import { html, render, useEffect, useMemo, useState } from '/vendor/htm-preact.js';
import { look, looked } from '/address.js';
import { about, get, job, send } from '/api.js';
import { Compare } from '/compare.js';
import { Jobs } from '/jobs.js';
import { Models } from '/models.js';
import { Neuron } from '/neuron.js';
import { askEarly, firstMetric, NeuronMap } from '/neuron_map.js';
import { Overview } from '/overview.js';
import { Patterns } from '/patterns.js';
import { Saved } from '/saved.js';
import { Search } from '/search.js';
import { Selection } from '/selection.js';
import { firstText, Simulation } from '/simulation.js';
import { Table } from '/table.js';
import { Training } from '/training.js';
import { megabytes, number, Problem, Working } from '/words.js';

function Page() {
  const [card, setCard] = useState(null);
  const [models, setModels] = useState(null);
  const [problem, setProblem] = useState(null);
  const list = () => get('/api/models').then(setModels, setProblem);
  const load = () => Promise.all([get('/api/models/current').then(found => { about(found); setCard(found); setOther(false); }), list()]).then(() => setProblem(null), setProblem);
  useEffect(() => { load(); }, []);
  const [working, setWorking] = useState(null);
  const [gone, setGone] = useState(false);
  const [other, setOther] = useState(false);
  useEffect(() => {
    const heard = { unreachable: () => setGone(true), reachable: () => { setGone(false); list(); }, 'other-model': () => setOther(true) };
    for (const [name, act] of Object.entries(heard)) addEventListener(name, act);
    return () => { for (const [name, act] of Object.entries(heard)) removeEventListener(name, act); };
  }, []);
  const turnTo = async name => {
    setProblem(null);
    setWorking({ description: `loading ${name}`, share: null });
    try {
      await job('/api/models/load', { model_name: name }, { progress: setWorking });
      look({ focus: null, selection: null, view: null });
      await load();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const made = models?.models[card?.name]?.made;
  return html`
    <header>
      <h1><img src="/icon.svg" alt="" width="28" height="28" /> NeuronScope</h1>
      ${models && html`<label>Model <select value=${card?.name} disabled=${Boolean(working)} onChange=${event => turnTo(event.target.value)}>
        ${Object.values(models.models).map(one => html`<option value=${one.name} title=${one.description}>${one.name}</option>`)}
      </select></label>`}
      ${card && html`<p class="facts">${card.class}, ${card.layers} layers, ${number(card.parameters)} parameters, ${megabytes(card.bytes)} on ${card.device}${card.memory?.free_bytes ? `, ${(card.memory.free_bytes / 1e9).toFixed(1)} GB free` : ''}</p>`}
      ${made && html`<p class="facts">Made here from ${made.base}, which is as it was. <button onClick=${() => turnTo(made.base)} disabled=${Boolean(working)}>Go back to it</button></p>`}
      <${Working} on=${working} />
    </header>
    ${gone && html`<div class="problem" role="alert"><b>The server does not answer.</b> What is chosen here is kept; the page goes on as soon as it is back.</div>`}
    ${other && html`<div class="problem" role="alert"><b>The server has turned to another model</b>, from another page perhaps. <button onClick=${load}>Look at that one</button> <button onClick=${() => turnTo(card.name)}>Load ${card.name} again</button></div>`}
    ${!gone && html`<${Problem} error=${problem} />`}
    ${card ? html`<${Bench} key=${card.fingerprint} card=${card} models=${models} changed=${list} turnTo=${turnTo} />`
      : problem?.status === 401 ? html`<main class="empty"><${Token} done=${load} /></main>`
      : problem ? html`<main class="empty"><button class="main" onClick=${load}>Try again</button></main>`
        : html`<main class="empty" role="status">Loading the model …</main>`}
  `;
}

function Token({ done }) {
  const [token, setToken] = useState('');
  const [problem, setProblem] = useState(null);
  const enter = async event => {
    event.preventDefault();
    try {
      await send('POST', '/api/session', undefined, { Authorization: `Bearer ${token}` });
      askEarly();
      await done();
    } catch (error) { setProblem(error); }
  };
  return html`<form class="row" onSubmit=${enter}>
    <label>Token of this server <input type="password" autocomplete="current-password" value=${token} onInput=${event => setToken(event.target.value)} /></label>
    <button class="main" disabled=${!token}>Enter</button> <${Problem} error=${problem} /></form>`;
}

function firstFocus(selection) {
  const [layer, neuron] = (looked('focus') ?? '').split('-').map(Number);
  return layer < selection.sizes.length && neuron < selection.sizes[layer] ? [layer, neuron] : null;
}

function Bench({ card, models, changed, turnTo }) {
  const selection = useMemo(() => new Selection(card.layer_sizes), []); // another model is another Bench
  const [turn, setTurn] = useState(0);
  const [focus, setFocus] = useState(() => firstFocus(selection));
  const [values, setValues] = useState(null);
  const [text, setText] = useState(() => firstText(card));
  const [metric, setMetric] = useState(firstMetric);
  const edited = () => setTurn(turn => turn + 1);
  const [latency, setLatency] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    job('/api/models/latency', undefined, { method: 'GET', signal: stop.signal }).then(setLatency, () => {});
    return () => stop.abort();
  }, []);
  useEffect(() => { look({ focus: focus && focus.join('-') }); }, [focus]);
  useEffect(() => { // what could not be asked is asked now
    addEventListener('reachable', edited);
    return () => removeEventListener('reachable', edited);
  }, []);
  useEffect(() => {
    const keys = event => {
      if (!(event.ctrlKey || event.metaKey) || event.target.matches('textarea, input')) return;
      const key = event.key.toLowerCase();
      if (key === 'z' && !event.shiftKey) selection.undo();
      else if (key === 'y' || key === 'z') selection.redo();
      else return;
      event.preventDefault();
      edited();
    };
    addEventListener('keydown', keys);
    return () => removeEventListener('keydown', keys);
  }, [selection]);
  const shared = { card, selection, turn, edited, focus, setFocus, values, setValues, latency, text, setText, metric, setMetric, models, changed, turnTo };
  return html`<main>
    <${NeuronMap} ...${shared} />
    <div class="side">
      <${Simulation} ...${shared} />
      <${Neuron} place=${focus} ...${shared} />
    </div>
    <${Drawers} ...${shared} />
  </main>`;
}

const DRAWERS = {
  overview: ['Overview', Overview], saved: ['Selections', Saved], table: ['Table', Table], search: ['Search', Search], models: ['Models', Models],
  compare: ['Compare', Compare], weights: ['Weights', Patterns], training: ['Training', Training], jobs: ['Jobs', Jobs],
};

function Drawers(shared) {
  const [open, setOpen] = useState(looked('open') in DRAWERS ? looked('open') : 'overview');
  const show = name => { setOpen(name); look({ open: name }); };
  const keys = event => {
    const names = Object.keys(DRAWERS);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(open) + step + names.length) % names.length];
    show(next);
    document.getElementById(`tab-${next}`).focus();
  };
  const [, Drawer] = DRAWERS[open];
  return html`<div class="drawers">
    <div class="tabs" role="tablist" aria-label="More" onKeyDown=${keys}>${Object.entries(DRAWERS).map(([name, [title]]) => html`
      <button role="tab" id="tab-${name}" aria-selected=${name === open} aria-controls="drawer" tabindex=${name === open ? 0 : -1} onClick=${() => show(name)}>${title}</button>`)}</div>
    <div role="tabpanel" id="drawer" aria-labelledby="tab-${open}"><${Drawer} ...${shared} /></div>
  </div>`;
}

askEarly();
const place = document.getElementById('page');
place.replaceChildren(); // what is shown until this runs
render(html`<${Page} />`, place);
