// The map with its controls: colour, thresholds, zoom, brush, keyboard.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from '/vendor/htm-preact.js';
import { floats, floatsAndModel, job } from '/api.js';
import { look, looked } from '/address.js';
import { Histogram } from '/histogram.js';
import { rectangle, useBrush } from '/brush.js';
import { sortedValues } from '/in_order.js';
import { moved, Painter, scaleOf, zoomed } from '/map.js';
import { number, Problem, Working } from '/words.js';

export const METRICS = {
  magnitude: 'mean |weight|',
  score: 'pruning score',
  consumer_norm: 'norm of what reads it',
  activity: 'activity on samples',
  variance: 'variance on samples',
  'first-order': 'change of the loss, first order',
  impact: 'estimated impact',
  exact: 'exact impact, where known',
};
const WHOLE = { from: 0, to: 1 };

function firstView() {
  const [from, to] = (looked('view') ?? '').split('-').map(Number);
  return from >= 0 && to <= 1 && from < to ? { from, to } : WHOLE;
}

// The first values are asked for before anybody knows which model it is, to save waiting; the answer tells.
const early = { metric: firstMetric(), found: null };
export function askEarly() {
  early.found = floatsAndModel(`/api/neurons.bin?metric=${early.metric}`).catch(() => null);
}

async function valuesOf(metric, fingerprint) {
  const found = metric === early.metric ? await early.found : null;
  early.found = null;
  return found?.model === fingerprint ? found.values : floats(`/api/neurons.bin?metric=${metric}`);
}

export function firstMetric() { return looked('metric') in METRICS ? looked('metric') : 'magnitude'; }

// The exact impact of all neurons of a layer is a job of its own.
function FindOut({ selection, layer, done }) {
  const [wanted, setWanted] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const own = wanted ?? layer;
  const start = async event => {
    event.preventDefault();
    setProblem(null);
    setWorking({ description: 'starting', share: null });
    try {
      await job('/api/pruning/neuron-importance', { layer_index: own, method: 'exact' }, { progress: setWorking });
      done();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  return html`<form class="row" onSubmit=${start}>
    <label>Layer <select value=${own} onChange=${event => setWanted(Number(event.target.value))}>${selection.sizes.map((_, index) => html`<option value=${index}>${index}</option>`)}</select></label>
    <button disabled=${Boolean(working)}>Find out the exact impact of each</button> <${Working} on=${working} /> <${Problem} error=${problem} /></form>`;
}

export function NeuronMap({ card, selection, turn, edited, focus, setFocus, values, setValues, metric, setMetric }) {
  const canvas = useRef(null);
  const [view, setView] = useState(firstView);
  const [share, setShare] = useState(0);
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(null);
  const [again, setAgain] = useState(0);
  const [whole, setWhole] = useState(false);
  const [free, setFree] = useState(false);
  const [corner, setCorner] = useState(null);
  const [sorted, setSorted] = useState(null);
  useEffect(() => {
    let current = true;
    setValues(null);
    look({ metric });
    valuesOf(metric, card.fingerprint).then(
      found => { if (current) { setValues(found); setProblem(null); } },
      error => { if (current) setProblem(error); });
    return () => { current = false; };
  }, [metric, card, again]);
  useEffect(() => { look({ view: view.from === 0 && view.to === 1 ? null : `${view.from.toFixed(4)}-${view.to.toFixed(4)}` }); }, [view]);
  const scale = useMemo(() => values && scaleOf(values), [values]);
  useEffect(() => {
    let current = true;
    setSorted(null);
    if (values) sortedValues(values, selection.sizes).then(found => { if (current) setSorted(found); });
    return () => { current = false; };
  }, [values]);
  const painter = useRef(null);
  useLayoutEffect(() => { // before the browser paints, not a frame later
    if (!values) return undefined;
    const paint = () => {
      const start = performance.now();
      painter.current ??= new Painter(canvas.current);
      painter.current.draw(selection, values, scale, focus, view);
      performance.measure('redraw', { start });
    };
    paint();
    addEventListener('resize', paint);
    return () => removeEventListener('resize', paint);
  }, [values, turn, focus, view]);
  // A passive listener could not keep the page from growing under the pointer.
  useEffect(() => {
    const place = canvas.current;
    const wheel = event => {
      if (!event.ctrlKey && !event.shiftKey) return;
      event.preventDefault();
      const { left, width } = place.getBoundingClientRect();
      setView(view => event.ctrlKey
        ? zoomed(view, event.deltaY > 0 ? 1.25 : 0.8, view.from + (event.clientX - left) / width * (view.to - view.from))
        : moved(view, Math.sign(event.deltaY || event.deltaX) / 8));
    };
    place.addEventListener('wheel', wheel, { passive: false });
    return () => place.removeEventListener('wheel', wheel);
  }, []);
  const { handlers, drawn } = useBrush({ canvas, selection, view, free, edited, setFocus, setOver });
  const keys = event => {
    const [layer, neuron] = focus ?? [0, 0];
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const middle = (neuron + 0.5) / selection.sizes[layer];
    if (event.key in moves) {
      const step = event.shiftKey ? 16 : 1;
      const next = Math.max(0, Math.min(selection.sizes.length - 1, layer + moves[event.key][0]));
      setFocus([next, Math.max(0, Math.min(selection.sizes[next] - 1, neuron + step * moves[event.key][1]))]);
    } else if (event.key === ' ') {
      selection.edit(chosen => { chosen[selection.starts[layer] + neuron] ^= 1; });
      setFocus([layer, neuron]);
      edited();
    } else if (event.key === 'x') {
      if (corner) { rectangle(selection, corner, [layer, neuron], 1); edited(); }
      setCorner(corner ? null : [layer, neuron]);
    } else if (event.key === 'Escape') setCorner(null);
    else if (event.key === '+' || event.key === '=') setView(zoomed(view, 0.5, middle));
    else if (event.key === '-') setView(zoomed(view, 2, middle));
    else if (event.key === '0') setView(WHOLE);
    else return;
    setOver(null);
    event.preventDefault();
  };
  useEffect(() => { // keep what has the focus in sight
    if (!focus) return;
    const place = (focus[1] + 0.5) / selection.sizes[focus[0]];
    if (place < view.from) setView(moved(view, (place - view.from) / (view.to - view.from) - 0.1));
    if (place > view.to) setView(moved(view, (place - view.to) / (view.to - view.from) + 0.1));
  }, [focus]);
  const lowest = (wanted, together) => {
    setShare(wanted);
    setWhole(together);
    selection.lowest(values, sorted, wanted / 100, together);
    edited();
  };
  const closer = factor => view => zoomed(view, factor, (view.from + view.to) / 2);
  const shown = over ?? focus;
  const every = Math.ceil(selection.sizes.length / 30); // labels that would overlap are left out
  return html`<section class="map" aria-label="Neuron map">
    <div class="row">
      <h2>All ${number(selection.total)} neurons</h2>
      <label>Colour <select value=${metric} onChange=${event => setMetric(event.target.value)}>
        ${Object.entries(METRICS).map(([name, title]) => html`<option value=${name}>${title}</option>`)}
      </select></label>
      <label>Choose the lowest <output>${share} %</output>
        <input type="range" min="0" max="90" step="1" value=${share} disabled=${!sorted} onInput=${event => lowest(Number(event.target.value), whole)} aria-label="Choose the lowest per cent" /></label>
      <label>of <select value=${whole ? 'model' : 'layer'} disabled=${!sorted} onChange=${event => lowest(share, event.target.value === 'model')}>
        <option value="layer">each layer</option><option value="model">the whole model</option></select></label>
      <label>Drag <select value=${free ? 'shape' : 'rectangle'} onChange=${event => setFree(event.target.value === 'shape')}>
        <option value="rectangle">a rectangle</option><option value="shape">a free shape</option></select></label>
      <span class="buttons">
        <button onClick=${() => { selection.undo(); edited(); }} disabled=${!selection.past.length}>Undo</button>
        <button onClick=${() => { selection.redo(); edited(); }} disabled=${!selection.future.length}>Redo</button>
        <button onClick=${() => { selection.put([]); setShare(0); edited(); }} disabled=${!selection.count}>Clear</button>
      </span>
      <span class="buttons" role="group" aria-label="Zoom">
        <button onClick=${() => setView(closer(0.5))} aria-label="Closer">+</button>
        <button onClick=${() => setView(closer(2))} aria-label="Further away">−</button>
        <button onClick=${() => setView(view => moved(view, -0.5))} aria-label="To the left" disabled=${view.from === 0}>←</button>
        <button onClick=${() => setView(view => moved(view, 0.5))} aria-label="To the right" disabled=${view.to === 1}>→</button>
        <button onClick=${() => setView(WHOLE)} disabled=${view.to - view.from === 1}>Whole</button>
      </span>
    </div>
    <${Problem} error=${problem} />
    ${metric === 'exact' && html`<${FindOut} selection=${selection} layer=${focus?.[0] ?? 0} done=${() => setAgain(again => again + 1)} />`}
    <div class="plot">
      <div class="layers" aria-hidden="true">${selection.sizes.map((_, layer) => layer % every === 0 && html`<span style=${{ top: `${100 * (layer + 0.5) / selection.sizes.length}%` }}>${layer}</span>`)}</div>
      <div class="canvas"><canvas ref=${canvas} tabindex="0" role="application" class=${values ? '' : 'waiting'}
        aria-label="Neurons by layer. Arrow keys move, space chooses, shift and an arrow moves by 16, x begins a rectangle and ends it, plus and minus zoom, 0 shows all."
        ...${handlers} onKeyDown=${keys}></canvas>
      ${drawn}</div>
      <div class="bars" aria-hidden="true">${selection.sizes.map((size, layer) => html`<span title="layer ${layer}: ${selection.counts[layer]} of ${size} chosen"><i style=${{ width: `${100 * selection.counts[layer] / size}%` }}></i></span>`)}</div>
    </div>
    <div class="row legend">
      <span class="ramp" aria-hidden="true"></span>
      <span>${scale ? (scale.none ? 'none known yet' : `${number(scale.low)} to ${number(scale.high)}`) : problem ? '' : 'working …'}</span>
      <span class="mark" aria-hidden="true"></span><span>chosen</span>
      <span class="where" role="status">${shown && values
        ? `layer ${shown[0]}, neuron ${shown[1]}: ${number(values[selection.starts[shown[0]] + shown[1]])}` : 'Click, or drag over neurons; with shift to take them out again.'}${corner ? ` A rectangle begins at layer ${corner[0]}, neuron ${corner[1]}: x ends it, Escape drops it.` : ''}</span>
    </div>
    ${values && html`<${Histogram} values=${values} scale=${scale} selection=${selection} turn=${turn}
      choose=${limit => { selection.below(values, limit); edited(); }} />`}
  </section>`;
}
