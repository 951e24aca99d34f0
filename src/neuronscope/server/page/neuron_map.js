// The map with its controls: colour, thresholds, zoom, brush, keyboard.

import { html, useEffect, useMemo, useRef, useState } from '/vendor/htm-preact.js';
import { floats } from '/api.js';
import { look, looked } from '/address.js';
import { Histogram } from '/histogram.js';
import { at, draw, moved, scaleOf, zoomed } from '/map.js';
import { sortedByLayer } from '/selection.js';
import { number, Problem } from '/words.js';

export const METRICS = {
  magnitude: 'mean |weight|',
  score: 'pruning score',
  consumer_norm: 'norm of what reads it',
  activity: 'activity on samples',
  variance: 'variance on samples',
  'first-order': 'change of the loss, first order',
  impact: 'estimated impact',
};
const WHOLE = { from: 0, to: 1 };

function firstView() {
  const [from, to] = (looked('view') ?? '').split('-').map(Number);
  return from >= 0 && to <= 1 && from < to ? { from, to } : WHOLE;
}

export function NeuronMap({ card, selection, turn, edited, focus, setFocus, values, setValues }) {
  const canvas = useRef(null);
  const [metric, setMetric] = useState(looked('metric') in METRICS ? looked('metric') : 'magnitude');
  const [view, setView] = useState(firstView);
  const [share, setShare] = useState(0);
  const [problem, setProblem] = useState(null);
  const [over, setOver] = useState(null);
  const pressed = useRef(null);
  useEffect(() => {
    let current = true;
    setValues(null);
    look({ metric });
    floats(`/api/neurons.bin?metric=${metric}`).then(
      found => { if (current) { setValues(found); setProblem(null); } },
      error => { if (current) setProblem(error); });
    return () => { current = false; };
  }, [metric, card]);
  useEffect(() => { look({ view: view.from === 0 && view.to === 1 ? null : `${view.from.toFixed(4)}-${view.to.toFixed(4)}` }); }, [view]);
  const scale = useMemo(() => values && scaleOf(values), [values]);
  const sorted = useMemo(() => values && sortedByLayer(selection, values), [values]);
  useEffect(() => {
    if (!values) return undefined;
    const paint = () => {
      const start = performance.now();
      const box = canvas.current.getBoundingClientRect();
      canvas.current.width = Math.max(1, Math.round(box.width * devicePixelRatio));
      canvas.current.height = Math.max(1, Math.round(box.height * devicePixelRatio));
      draw(canvas.current, selection, values, scale, focus, view);
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
  const brush = event => {
    const [fromLayer, fromNeuron] = pressed.current;
    const [toLayer, toNeuron] = at(canvas.current, selection, event.clientX, event.clientY, view);
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
    const middle = (neuron + 0.5) / selection.sizes[layer];
    if (event.key in moves) {
      const step = event.shiftKey ? 16 : 1;
      const next = Math.max(0, Math.min(selection.sizes.length - 1, layer + moves[event.key][0]));
      setFocus([next, Math.max(0, Math.min(selection.sizes[next] - 1, neuron + step * moves[event.key][1]))]);
    } else if (event.key === ' ') {
      selection.edit(chosen => { chosen[selection.starts[layer] + neuron] ^= 1; });
      setFocus([layer, neuron]);
      edited();
    } else if (event.key === '+' || event.key === '=') setView(zoomed(view, 0.5, middle));
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
  const slide = event => {
    const wanted = Number(event.target.value);
    setShare(wanted);
    selection.lowest(values, sorted, wanted / 100);
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
        <input type="range" min="0" max="90" step="1" value=${share} disabled=${!values} onInput=${slide} aria-label="Choose the lowest per cent of each layer" /></label>
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
    <div class="plot">
      <div class="layers" aria-hidden="true">${selection.sizes.map((_, layer) => html`<span>${layer % every ? '' : layer}</span>`)}</div>
      <canvas ref=${canvas} tabindex="0" role="application" class=${values ? '' : 'waiting'}
        aria-label="Neurons by layer. Arrow keys move, space chooses, shift and an arrow moves by 16, plus and minus zoom, 0 shows all."
        onPointerDown=${event => { pressed.current = at(canvas.current, selection, event.clientX, event.clientY, view); canvas.current.setPointerCapture(event.pointerId); }}
        onPointerUp=${event => { if (pressed.current) brush(event); pressed.current = null; }}
        onPointerMove=${event => setOver(at(canvas.current, selection, event.clientX, event.clientY, view))}
        onPointerLeave=${() => setOver(null)} onKeyDown=${keys}></canvas>
      <div class="bars" aria-hidden="true">${selection.sizes.map((size, layer) => html`<span title="layer ${layer}: ${selection.inLayer(layer)} of ${size} chosen"><i style=${{ width: `${100 * selection.inLayer(layer) / size}%` }}></i></span>`)}</div>
    </div>
    <div class="row legend">
      <span class="ramp" aria-hidden="true"></span>
      <span>${scale ? `${number(scale.low)} to ${number(scale.high)}` : problem ? '' : 'working …'}</span>
      <span class="mark" aria-hidden="true"></span><span>chosen</span>
      <span class="where" role="status">${shown && values
        ? `layer ${shown[0]}, neuron ${shown[1]}: ${number(values[selection.starts[shown[0]] + shown[1]])}` : 'Click, or drag over neurons; with shift to take them out again.'}</span>
    </div>
    ${values && html`<${Histogram} values=${values} scale=${scale} selection=${selection} turn=${turn}
      choose=${limit => { selection.below(values, limit); edited(); }} />`}
  </section>`;
}
