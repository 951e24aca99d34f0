// The model at a glance: its card, how each layer's neurons are spread, how many weights are zero, and what is frozen.

import { html, useEffect, useMemo, useState } from '/vendor/htm-preact.js';
import { get } from '/api.js';
import { binned, counted } from '/histogram.js';
import { METRICS } from '/neuron_map.js';
import { scaleOf } from '/map.js';
import { megabytes, number, percent, Problem } from '/words.js';

export function Overview({ card, selection, values, metric, latency, turn, setFocus }) {
  const [weights, setWeights] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    get('/api/pruning/weight-analysis').then(setWeights, setProblem);
  }, [card]);
  const sparsity = useMemo(() => weights && sparsityByLayer(weights, card), [weights]);
  const scale = useMemo(() => values && scaleOf(values), [values]);
  return html`<section aria-label="Overview">
    <${Problem} error=${problem} />
    <div class="columns">
      <dl>
        <dt>architecture</dt><dd>${card.class} (${card.family})</dd>
        <dt>layers with neurons</dt><dd>${card.layers}, ${number(selection.total)} neurons</dd>
        <dt>parameters</dt><dd>${number(card.parameters)}, ${card.dtypes.join(', ')}</dd>
        <dt>size</dt><dd>${megabytes(card.bytes)}</dd>
        <dt>one forward${latency?.input_shape ? `, ${latency.input_shape.join(' × ')}` : ''}</dt><dd>${latency ? `${number(latency.latency_ms)} ms on ${card.device}` : 'measuring …'}</dd>
        <dt>zero weights</dt><dd>${weights ? `${percent(weights.overall_sparsity)}: ${weights.sparsity_band} sparsity` : '…'}</dd>
      </dl>
      <div>
        <h3>What stays as it is</h3>
        ${card.frozen.length ? html`<ul class="tall" tabindex="0" aria-label="What stays as it is">${card.frozen.map(one => html`<li><code>${one.name}</code> (${number(one.size)}): ${one.reason}</li>`)}</ul>`
          : html`<p class="empty">Every neuron that was found can be removed.</p>`}
      </div>
    </div>
    <div class="wide tall" tabindex="0" role="region" aria-label="Layers"><table class="spread">
      <thead><tr><th scope="col">layer</th><th scope="col">neurons</th><th scope="col">chosen</th><th scope="col">zero weights</th><th scope="col">${METRICS[metric]}${scale ? `, ${number(scale.least)} to ${number(scale.most)}` : ''}</th></tr></thead>
      <tbody>${selection.sizes.map((size, layer) => html`<tr>
        <th scope="row"><button class="link" onClick=${() => setFocus([layer, 0])} title=${card.layer_names[layer]}>${card.layer_names[layer]}</button></th>
        <td>${number(size)}</td><td>${percent(selection.counts[layer] / size)}</td><td>${percent(sparsity?.[layer])}</td>
        <td>${values && html`<${Spread} values=${values} selection=${selection} layer=${layer} scale=${scale} turn=${turn} />`}</td></tr>`)}</tbody></table></div>
  </section>`;
}

// Share of zero weights in all modules of a layer.
function sparsityByLayer(weights, card) {
  const total = new Array(card.layers).fill(0);
  const left = new Array(card.layers).fill(0);
  for (const one of weights.layer_stats) {
    if (one.layer_index === null || one.layer_index < 0 || one.layer_index >= card.layers) continue;
    total[one.layer_index] += one.total_parameters;
    left[one.layer_index] += one.non_zero_parameters;
  }
  return total.map((all, layer) => all ? 1 - left[layer] / all : null);
}

function Spread({ values, selection, layer, scale, turn }) {
  const [from, to] = [selection.starts[layer], selection.starts[layer] + selection.sizes[layer]];
  const { bins, all } = useMemo(() => binned(values.subarray(from, to), scale.least, scale.most), [values]);
  const own = useMemo(() => counted(bins, selection.chosen.subarray(from, to)), [bins, turn]);
  const highest = Math.max(...all, 1);
  const bars = counts => Array.from(counts, (count, bin) => count ? `M${bin} 10v${-10 * Math.sqrt(count / highest)}h1V10z` : '').join('');
  return html`<svg viewBox="0 0 ${all.length} 10" preserveAspectRatio="none" aria-hidden="true"><path class="all" d=${bars(all)} /><path class="own" d=${bars(own)} /></svg>`;
}
