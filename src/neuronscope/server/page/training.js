// What every neuron did in training, scrubbed by epoch: which fired, which died, which were removed.

import { html, useEffect, useMemo, useRef, useState } from '/vendor/htm-preact.js';
import { floats, get } from '/api.js';
import { at, Painter, scaleOf } from '/map.js';
import { Selection } from '/selection.js';
import { number, percent, Problem } from '/words.js';

const STATISTICS = { firing_frequency: 'how often it fires', mean_magnitude: 'mean activity', variance: 'variance of its activity' };
const WHOLE = { from: 0, to: 1 };
const PLAY_MS = 400;

export function Training() {
  const [names, setNames] = useState(null);
  const [name, setName] = useState(null);
  const [run, setRun] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => { get('/api/histories').then(found => { setNames(found.histories); setName(found.histories[0] ?? null); }, setProblem); }, []);
  useEffect(() => {
    let current = true;
    setRun(null);
    if (name) get(`/api/histories/${encodeURIComponent(name)}`).then(found => { if (current) { setRun(found); setProblem(null); } }, error => { if (current) setProblem(error); });
    return () => { current = false; };
  }, [name]);
  return html`<section aria-label="Training history">
    <${Problem} error=${problem} />
    ${names && !names.length && html`<p class="empty">No training run to look back on. Keep one with <code>engine.save_neuron_history("runs/name.safetensors")</code>, and start <code>neuronscope serve --history runs</code>.</p>`}
    ${names?.length > 1 && html`<label>Run <select value=${name} onChange=${event => setName(event.target.value)}>${names.map(one => html`<option value=${one}>${one}</option>`)}</select></label>`}
    ${run ? run.epochs.length ? html`<${Run} key=${run.name} run=${run} />` : html`<p class="empty">This run has no epochs yet.</p>` : name && !problem && html`<p class="empty" role="status">Loading the run …</p>`}
  </section>`;
}

function Run({ run }) {
  const neurons = useMemo(() => new Selection(run.layer_sizes), [run]);
  const last = run.epochs.length - 1;
  const [epoch, setEpoch] = useState(last);
  const [statistic, setStatistic] = useState('firing_frequency');
  const [all, setAll] = useState(null);
  const [place, setPlace] = useState(null);
  const [playing, setPlaying] = useState(false);
  const [problem, setProblem] = useState(null);
  const canvas = useRef(null);
  const painter = useRef(null);
  useEffect(() => { // every epoch at once, so that scrubbing asks for nothing
    let current = true;
    setAll(null);
    const base = `/api/histories/${encodeURIComponent(run.name)}`;
    Promise.all(run.epochs.map((_, index) => floats(`${base}/${index}/neurons.bin?statistic=${statistic}`))).then(
      found => { if (current) { setAll(found); setProblem(null); } }, error => { if (current) setProblem(error); });
    return () => { current = false; };
  }, [statistic, run]);
  // One scale for all epochs: the same colour is the same number.
  const scale = useMemo(() => {
    if (!all) return null;
    const scales = all.map(scaleOf);
    return { low: Math.min(...scales.map(one => one.low)), high: Math.max(...scales.map(one => one.high)) };
  }, [all]);
  useEffect(() => {
    if (!all) return undefined;
    const paint = () => {
      painter.current ??= new Painter(canvas.current);
      painter.current.draw(neurons, all[epoch], scale, place, WHOLE);
    };
    paint();
    addEventListener('resize', paint);
    return () => removeEventListener('resize', paint);
  }, [all, epoch, place]);
  useEffect(() => {
    if (!playing) return undefined;
    const timer = setInterval(() => setEpoch(now => {
      if (now >= last) { setPlaying(false); return now; }
      return now + 1;
    }), PLAY_MS);
    return () => clearInterval(timer);
  }, [playing]);
  const keys = event => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [layer, neuron] = place ?? [0, 0];
    const next = Math.max(0, Math.min(run.layer_sizes.length - 1, layer + move[0]));
    setPlace([next, Math.max(0, Math.min(run.layer_sizes[next] - 1, neuron + move[1]))]);
  };
  const sum = counts => counts.reduce((one, other) => one + other, 0);
  const dead = sum(run.dead[epoch]);
  const gone = sum(run.gone[epoch]);
  const said = [
    run.loss[epoch] !== null && `loss ${number(run.loss[epoch])}`,
    run.accuracy[epoch] !== null && `accuracy ${percent(run.accuracy[epoch])}`,
    `${number(dead)} of ${number(neurons.total - gone)} neurons dead`,
    gone && `${number(gone)} removed`,
  ].filter(Boolean);
  return html`
    <div class="row">
      <label>Colour <select value=${statistic} onChange=${event => setStatistic(event.target.value)}>${Object.entries(STATISTICS).map(([key, title]) => html`<option value=${key}>${title}</option>`)}</select></label>
      <button onClick=${() => { if (epoch === last) setEpoch(0); setPlaying(!playing); }} disabled=${!last}>${playing ? 'Stop' : 'Play'}</button>
      <label>Epoch <output>${run.epochs[epoch]}</output>
        <input type="range" class="epochs" min="0" max=${last} step="1" value=${epoch} aria-label="Epoch" aria-valuetext=${`epoch ${run.epochs[epoch]}`} onInput=${event => { setPlaying(false); setEpoch(Number(event.target.value)); }} /></label>
      <span role="status">${said.join(', ')}</span>
    </div>
    <${Problem} error=${problem} />
    <div class="plot past">
      <div class="layers" aria-hidden="true">${run.layer_sizes.map((_, layer) => layer % Math.ceil(run.layer_sizes.length / 15) === 0 && html`<span title=${run.layer_names[layer]} style=${{ top: `${100 * (layer + 0.5) / run.layer_sizes.length}%` }}>${layer}</span>`)}</div>
      <div class="canvas"><canvas ref=${canvas} tabindex="0" role="application" class=${all ? '' : 'waiting'} aria-label="Neurons by layer in the epoch that is chosen. Arrow keys move." onKeyDown=${keys}
        onClick=${event => setPlace(at(canvas.current, neurons, event.clientX, event.clientY, WHOLE))}></canvas></div>
    </div>
    <div class="row legend"><span class="ramp" aria-hidden="true"></span><span>${scale ? `${number(scale.low)} to ${number(scale.high)}` : 'working …'}</span>
      <span>${place ? '' : 'Click a neuron to see all its epochs.'}</span></div>
    <div class="columns">
      <${Curve} title="Dead neurons" values=${run.dead.map(sum)} epochs=${run.epochs} epoch=${epoch} />
      ${run.loss.some(value => value !== null) && html`<${Curve} title="Loss" values=${run.loss} epochs=${run.epochs} epoch=${epoch} />`}
      ${all && place && html`<${Curve} title=${`${STATISTICS[statistic]}: layer ${place[0]}, neuron ${place[1]}`} values=${all.map(one => one[neurons.starts[place[0]] + place[1]])} epochs=${run.epochs} epoch=${epoch} />`}
    </div>`;
}

function Curve({ title, values, epochs, epoch }) {
  const known = values.filter(value => value !== null && !Number.isNaN(value));
  const high = Math.max(...known, 0) || 1;
  const x = index => epochs.length > 1 ? 2 + 96 * index / (epochs.length - 1) : 50;
  const y = value => 28 - 25 * value / high;
  const missing = value => value === null || Number.isNaN(value);
  const path = values.map((value, index) => missing(value) ? '' : `${index && !missing(values[index - 1]) ? 'L' : 'M'}${x(index)} ${y(value)}`).join('');
  const now = values[epoch];
  return html`<figure class="curve"><figcaption>${title}: ${missing(now) ? 'not seen, or removed' : number(now)}</figcaption>
    <svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label="${title} by epoch, from ${number(values.find(value => !missing(value)) ?? null)} to ${number(known[known.length - 1] ?? null)}">
      <path d=${path} /><line x1=${x(epoch)} x2=${x(epoch)} y1="0" y2="30" /></svg></figure>`;
}
