// The page: the map of all neurons, the ones that are chosen, and what the model says without them.

import { html, render, useEffect, useMemo, useRef, useState } from '/vendor/htm-preact.js';
import { floats, get, job, send } from '/api.js';
import { at, draw, scaleOf } from '/map.js';
import { Selection } from '/selection.js';

const METRICS = {
  magnitude: 'mean |weight|',
  score: 'pruning score',
  consumer_norm: 'norm of what reads it',
  activity: 'activity on samples',
  impact: 'estimated impact',
};
const WAIT_MS = 300;

const number = value => value === null || value === undefined ? '–'
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : Number(value).toPrecision(3);
const percent = value => value === null || value === undefined ? '–' : `${(100 * value).toFixed(1)} %`;
const verdict = score => score < 0.1 ? 'safe' : score <= 0.3 ? 'caution' : 'avoid';

function Page() {
  const [card, setCard] = useState(null);
  const [models, setModels] = useState(null);
  const [problem, setProblem] = useState(null);
  const load = () => Promise.all([get('/api/models/current').then(setCard), get('/api/models').then(setModels)])
    .then(() => setProblem(null), setProblem);
  useEffect(() => { load(); }, []);
  const change = async name => {
    setCard(null);
    try { await send('POST', '/api/models/switch', { model_name: name }); } catch (error) { setProblem(error); }
    await load();
  };
  return html`
    <header>
      <h1><img src="/icon.svg" alt="" width="28" height="28" /> NeuronScope</h1>
      ${models && html`<label>Model <select value=${card?.name} onChange=${event => change(event.target.value)}>
        ${Object.values(models.models).map(one => html`<option value=${one.name} title=${one.description}>${one.name}</option>`)}
      </select></label>`}
      ${card && html`<p class="facts">${card.class}, ${card.layers} layers, ${number(card.parameters)} parameters, ${(card.bytes / 1e6).toFixed(1)} MB on ${card.device}</p>`}
    </header>
    <${Problem} error=${problem} />
    ${card ? html`<${Bench} key=${card.fingerprint} card=${card} changed=${load} />`
      : !problem && html`<p class="empty" role="status">Loading the model …</p>`}
  `;
}

function Problem({ error }) {
  return error && html`<div class="problem" role="alert"><b>${error.message}</b> ${error.details}</div>`;
}

function Bench({ card, changed }) {
  const selection = useMemo(() => new Selection(card.layer_sizes), [card]);
  const [turn, setTurn] = useState(0);
  const [focus, setFocus] = useState(null);
  const edited = () => setTurn(turn => turn + 1);
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
  return html`<main>
    <${NeuronMap} card=${card} selection=${selection} turn=${turn} edited=${edited} focus=${focus} setFocus=${setFocus} />
    <div class="side">
      <${Simulation} card=${card} selection=${selection} turn=${turn} edited=${edited} changed=${changed} />
      <${Neuron} place=${focus} selection=${selection} />
    </div>
    <${Saved} selection=${selection} card=${card} turn=${turn} edited=${edited} />
    <${Jobs} />
    <${Frozen} card=${card} />
  </main>`;
}

function NeuronMap({ card, selection, turn, edited, focus, setFocus }) {
  const canvas = useRef(null);
  const [metric, setMetric] = useState(new URLSearchParams(location.hash.slice(1)).get('metric') in METRICS
    ? new URLSearchParams(location.hash.slice(1)).get('metric') : 'magnitude');
  const [values, setValues] = useState(null);
  const [share, setShare] = useState(0);
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(null);
  const pressed = useRef(null);
  useEffect(() => {
    let current = true;
    setValues(null);
    history.replaceState(null, '', `#metric=${metric}`);
    floats(`/api/neurons.bin?metric=${metric}`).then(
      found => { if (current) { setValues(found); setProblem(null); } },
      error => { if (current) setProblem(error); });
    return () => { current = false; };
  }, [metric, card]);
  const scale = useMemo(() => values && scaleOf(values), [values]);
  useEffect(() => {
    if (!values) return undefined;
    const paint = () => {
      const box = canvas.current.getBoundingClientRect();
      canvas.current.width = Math.max(1, Math.round(box.width * devicePixelRatio));
      canvas.current.height = Math.max(1, Math.round(box.height * devicePixelRatio));
      draw(canvas.current, selection, values, scale, focus);
    };
    paint();
    addEventListener('resize', paint);
    return () => removeEventListener('resize', paint);
  }, [values, turn, focus]);
  const brush = event => {
    const [fromLayer, fromNeuron] = pressed.current;
    const [toLayer, toNeuron] = at(canvas.current, selection, event.clientX, event.clientY);
    const remove = event.shiftKey;
    const single = fromLayer === toLayer && fromNeuron === toNeuron;
    selection.edit(next => {
      for (let layer = Math.min(fromLayer, toLayer); layer <= Math.max(fromLayer, toLayer); layer++) {
        const size = selection.sizes[layer];
        const ends = [fromNeuron / selection.sizes[fromLayer], toNeuron / selection.sizes[toLayer]].map(share => Math.floor(share * size));
        for (let neuron = Math.min(...ends); neuron <= Math.min(size - 1, Math.max(...ends)); neuron++) {
          const place = selection.starts[layer] + neuron;
          next[place] = single ? 1 - next[place] : remove ? 0 : 1;
        }
      }
    });
    setFocus([toLayer, toNeuron]);
    edited();
  };
  const keys = event => {
    const [layer, neuron] = focus ?? [0, 0];
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key in moves) {
      const step = event.shiftKey ? 16 : 1;
      const next = Math.max(0, Math.min(selection.sizes.length - 1, layer + moves[event.key][0]));
      setFocus([next, Math.max(0, Math.min(selection.sizes[next] - 1, neuron + step * moves[event.key][1]))]);
    } else if (event.key === ' ') {
      selection.edit(chosen => { chosen[selection.starts[layer] + neuron] ^= 1; });
      setFocus([layer, neuron]);
      edited();
    } else return;
    setOver(null);
    event.preventDefault();
  };
  const slide = event => {
    const wanted = Number(event.target.value);
    setShare(wanted);
    selection.lowest(values, wanted / 100);
    edited();
  };
  const shown = over ?? focus;
  return html`<section class="map" aria-label="Neuron map">
    <div class="row">
      <h2>All ${number(selection.total)} neurons</h2>
      <label>Colour <select value=${metric} onChange=${event => setMetric(event.target.value)}>
        ${Object.entries(METRICS).map(([name, title]) => html`<option value=${name}>${title}</option>`)}
      </select></label>
      <label>Choose the lowest <output>${share} %</output>
        <input type="range" min="0" max="90" step="1" value=${share} disabled=${!values} onInput=${slide} aria-label="Choose the lowest per cent of each layer" /></label>
      <button onClick=${() => { selection.undo(); edited(); }} disabled=${!selection.past.length}>Undo</button>
      <button onClick=${() => { selection.redo(); edited(); }} disabled=${!selection.future.length}>Redo</button>
      <button onClick=${() => { selection.put([]); setShare(0); edited(); }} disabled=${!selection.count}>Clear</button>
    </div>
    <${Problem} error=${problem} />
    <div class="plot">
      <div class="layers" aria-hidden="true">${selection.sizes.map((_, layer) => html`<span>${layer}</span>`)}</div>
      <canvas ref=${canvas} tabindex="0" role="application" class=${values ? '' : 'waiting'}
        aria-label="Neurons by layer. Arrow keys move, space chooses, shift and an arrow moves by 16."
        onPointerDown=${event => { pressed.current = at(canvas.current, selection, event.clientX, event.clientY); canvas.current.setPointerCapture(event.pointerId); }}
        onPointerUp=${event => { if (pressed.current) brush(event); pressed.current = null; }}
        onPointerMove=${event => setOver(at(canvas.current, selection, event.clientX, event.clientY))}
        onPointerLeave=${() => setOver(null)} onKeyDown=${keys}></canvas>
    </div>
    <div class="row legend">
      <span class="ramp" aria-hidden="true"></span>
      <span>${scale ? `${number(scale.least)} to ${number(scale.most)}` : 'working …'}</span>
      <span class="mark" aria-hidden="true"></span><span>chosen</span>
      <span class="where" role="status">${shown && values
        ? `layer ${shown[0]}, neuron ${shown[1]}: ${number(values[selection.starts[shown[0]] + shown[1]])}` : 'Click, or drag over neurons; with shift to take them out again.'}</span>
    </div>
  </section>`;
}

function Simulation({ card, selection, turn, edited, changed }) {
  const [text, setText] = useState(card.reads === 'texts' ? 'import os\nimport sys\n\ndef main(argv):\n    path = os.path.join(argv[1], "data")' : '');
  const [ablation, setAblation] = useState('zero');
  const [found, setFound] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const [made, setMade] = useState(null);
  const count = selection.count;
  useEffect(() => {
    setMade(null);
    if (!count) { setFound(null); setWorking(null); setProblem(null); return undefined; }
    const stop = new AbortController();
    setWorking({ description: 'waiting', share: null });
    const timer = setTimeout(async () => {
      const body = { neurons: selection.pairs(), ablation, continuations: card.writes ? 16 : 0 };
      if (text.trim()) body.input_texts = text.split(/\n\s*\n\s*\n/).filter(part => part.trim());
      try {
        const result = await job('/api/pruning/simulate', body, { signal: stop.signal, progress: setWorking });
        if (!stop.signal.aborted) { setFound(result); setProblem(null); setWorking(null); }
      } catch (error) {
        if (error.name !== 'AbortError') { setProblem(error); setWorking(null); }
      }
    }, WAIT_MS);
    return () => { clearTimeout(timer); stop.abort(); };
  }, [turn, text, ablation, card]);
  const suggest = async () => {
    setWorking({ description: 'looking for the largest safe set', share: null });
    const body = { threshold: 0.1, ablation };
    if (text.trim()) body.input_texts = [text];
    try {
      const safe = await job('/api/pruning/safe-set', body, { progress: setWorking });
      selection.put(safe.neurons);
      edited();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const apply = async () => {
    setWorking({ description: 'removing, repairing, verifying', share: null });
    try {
      setMade(await job('/api/pruning/apply', { neurons: selection.pairs(), effort: 'low' }, { progress: setWorking }));
      changed();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const metrics = found?.metrics;
  return html`<section aria-label="Without the chosen neurons">
    <h2>Without ${number(count)} of them</h2>
    <${Problem} error=${problem} />
    ${!count && html`<p class="empty">Choose neurons on the map, and see at once what the model says without them.</p>`}
    ${found && html`<div class=${working ? 'result old' : 'result'}>
      <p class="score ${verdict(found.impact_score)}"><b>${found.impact_score.toFixed(3)}</b> <span>${verdict(found.impact_score)}</span>
        <small>impact, from 0 to 1; safe below 0.1</small></p>
      <dl>
        <dt>loss, nats a token</dt><dd>${metrics.loss_change === null ? '–' : (metrics.loss_change >= 0 ? '+' : '') + number(metrics.loss_change)}</dd>
        <dt>KL divergence, nats</dt><dd>${number(metrics.kl)}</dd>
        <dt>first choices that stay</dt><dd>${percent(metrics.top1_agreement)}</dd>
        <dt>parameters</dt><dd>${number(found.saved.parameters_before)} → ${number(found.saved.parameters_after)}</dd>
      </dl>
      ${found.continuations?.map(one => html`<div class="says">
        <p>${one.text.length > 160 ? '…' : ''}${one.text.slice(-160)}</p>
        <p><b>with</b> <code>${one.before}</code></p>
        <p><b>without</b> <code class=${one.before === one.after ? '' : 'other'}>${one.after}</code></p>
      </div>`)}
    </div>`}
    ${working && html`<p class="working" role="status"><progress value=${working.share ?? undefined} max="1"></progress> ${working.description}</p>`}
    <div class="row">
      <label>Instead of them <select value=${ablation} onChange=${event => setAblation(event.target.value)}>
        <option value="zero">nothing</option><option value="mean">their mean</option><option value="repaired">what the others tell</option>
      </select></label>
      <button onClick=${suggest} disabled=${Boolean(working)}>Choose the largest safe set</button>
      <button class="main" onClick=${apply} disabled=${!count || Boolean(working)}>Make the smaller model</button>
    </div>
    ${made && html`<p class="made" role="status">Made, ${made.verification.passed} of ${made.verification.total} checks passed:
      <a href=${made.download}>download</a>, <a href=${made.report} target="_blank">report</a>. The model here is as it was.</p>`}
    ${card.reads === 'texts' && html`<label class="block">Texts to try it with (two empty lines between them)
      <textarea rows="5" spellcheck="false" value=${text} onInput=${event => setText(event.target.value)}></textarea></label>`}
  </section>`;
}

function Neuron({ place, selection }) {
  const [found, setFound] = useState(null);
  useEffect(() => {
    let current = true;
    if (place) get(`/api/neurons/${place[0]}/${place[1]}`).then(one => { if (current) setFound(one); }, () => {});
    return () => { current = false; };
  }, [place && place.join()]);
  return place && found && html`<section aria-label="One neuron">
    <h2>Neuron ${found.neuron_index} of ${found.layer_name}</h2>
    <dl>
      <dt>mean |weight|</dt><dd>${number(found.weight_magnitude)} (${found.band})</dd>
      <dt>rank in its layer</dt><dd>${found.weight_rank} of ${selection.sizes[found.layer_index]}</dd>
      <dt>norm of what reads it</dt><dd>${number(found.consumer_norm)}</dd>
    </dl>
  </section>`;
}

function Saved({ selection, card, turn, edited }) {
  const [all, setAll] = useState([]);
  const [name, setName] = useState('');
  const [problem, setProblem] = useState(null);
  const load = () => get('/api/selections').then(found => setAll(found.selections), setProblem);
  useEffect(() => { load(); }, [card]);
  const save = async event => {
    event.preventDefault();
    try {
      await send('POST', '/api/selections', { name, neurons: selection.pairs() });
      setName('');
      setProblem(null);
    } catch (error) { setProblem(error); }
    load();
  };
  const drop = async id => { await send('DELETE', `/api/selections/${id}`).catch(setProblem); load(); };
  const own = all.filter(one => one.fingerprint === card.fingerprint);
  return html`<section aria-label="Saved selections">
    <h2>Saved selections</h2>
    <${Problem} error=${problem} />
    <form class="row" onSubmit=${save}>
      <label>Name <input value=${name} maxlength="200" onInput=${event => setName(event.target.value)} /></label>
      <button disabled=${!name.trim() || !selection.count}>Save these ${number(selection.count)}</button>
    </form>
    ${own.length ? html`<ul>${own.map(one => html`<li>
      <button class="link" onClick=${() => { selection.put(one.neurons); edited(); }}>${one.name}</button>
      <span>${number(one.neurons.length)} neurons</span>
      <a href=${`/api/selections/${one.id}/export`} download>export</a>
      <button onClick=${() => drop(one.id)} aria-label=${`Forget ${one.name}`}>Forget</button></li>`)}</ul>`
      : html`<p class="empty">None yet.</p>`}
  </section>`;
}

function Jobs() {
  const [all, setAll] = useState([]);
  useEffect(() => {
    const look = () => get('/api/jobs').then(found => setAll(found.jobs.filter(one => !one.cached).slice(0, 6)), () => {});
    look();
    const timer = setInterval(look, 2000);
    return () => clearInterval(timer);
  }, []);
  const act = (method, path) => send(method, path).catch(() => {});
  return html`<section aria-label="Jobs">
    <h2>Jobs</h2>
    <ul>${all.map(one => html`<li>
      <span class="kind">${one.kind}</span> <span class="state ${one.state}">${one.state}</span>
      ${one.state === 'running' && html`<progress value=${one.share ?? undefined} max="1"></progress>
        <span>${one.description}${one.eta_seconds ? `, ${Math.ceil(one.eta_seconds)} s left` : ''}</span>`}
      ${one.error && html`<span class="why">${one.error.error}</span>`}
      ${['queued', 'running'].includes(one.state) && html`<button onClick=${() => act('DELETE', `/api/jobs/${one.id}`)}>Cancel</button>`}
      ${['interrupted', 'failed', 'cancelled'].includes(one.state) && html`<button onClick=${() => act('POST', `/api/jobs/${one.id}/again`)}>Run again</button>`}
    </li>`)}</ul>
  </section>`;
}

function Frozen({ card }) {
  return card.frozen.length > 0 && html`<section aria-label="What stays as it is">
    <details><summary>What cannot be removed, and why (${card.frozen.length})</summary>
      <ul>${card.frozen.map(one => html`<li><code>${one.name}</code> (${number(one.size)}): ${one.reason}</li>`)}</ul>
    </details>
  </section>`;
}

render(html`<${Page} />`, document.getElementById('page'));
