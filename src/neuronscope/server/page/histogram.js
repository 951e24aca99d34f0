// How the values of all neurons are spread, the chosen ones among them; a click chooses all below that value.

import { html, useMemo, useRef } from '/vendor/htm-preact.js';
import { number } from '/words.js';

const BINS = 80;

// The bin of every value, and how many are in each; what is not known is in none.
const NONE = 255;

export function binned(values, least, most) {
  const bins = new Uint8Array(values.length);
  const all = new Uint32Array(BINS);
  const factor = BINS / (most - least || 1);
  for (let index = 0; index < values.length; index++) {
    const bin = Number.isNaN(values[index]) ? NONE : Math.min(BINS - 1, Math.max(0, Math.floor((values[index] - least) * factor)));
    bins[index] = bin;
    if (bin !== NONE) all[bin] += 1;
  }
  return { bins, all };
}

// How many of the chosen are in each bin.
export function counted(bins, chosen) {
  const own = new Uint32Array(BINS);
  for (let index = 0; index < bins.length; index++) if (chosen[index] && bins[index] !== NONE) own[bins[index]] += 1;
  return own;
}

export function Histogram({ values, scale, selection, turn, choose }) {
  const box = useRef(null);
  const { bins, all } = useMemo(() => binned(values, scale.least, scale.most), [values]);
  const own = useMemo(() => counted(bins, selection.chosen), [bins, turn]);
  const highest = Math.max(...all, 1);
  // A square root, so that rare values can be seen too.
  const height = count => 40 * Math.sqrt(count / highest);
  const bars = counts => Array.from(counts, (count, bin) => count
    ? `M${bin} 40V${(40 - height(count)).toFixed(2)}H${bin + 1}V40Z` : '').join('');
  const below = event => {
    const { left, width } = box.current.getBoundingClientRect();
    choose(scale.least + (event.clientX - left) / width * (scale.most - scale.least));
  };
  return html`<div class="histogram">
    <svg ref=${box} viewBox="0 0 ${BINS} 40" preserveAspectRatio="none" role="img" onClick=${below}
      aria-label="Neurons by value, from ${number(scale.least)} to ${number(scale.most)}; the chosen ones are marked">
      <path class="all" d=${bars(all)} /><path class="own" d=${bars(own)} />
    </svg>
    <label>Choose all below <input type="number" step="any" placeholder=${number(scale.low)}
      onChange=${event => event.target.value !== '' && choose(Number(event.target.value))} /></label>
  </div>`;
}
