// What the weights look like: their bands, and the structure of every matrix.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { get, job } from '/api.js';
import { number, percent, Problem, Working } from '/words.js';

export function Patterns({ card }) {
  const [weights, setWeights] = useState(null);
  const [found, setFound] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => { get('/api/pruning/weight-analysis').then(setWeights, setProblem); }, [card]);
  const start = async () => {
    setWorking({ description: 'looking at every matrix', share: null });
    try { setFound((await job('/api/pruning/sparsity-patterns', undefined, { method: 'GET', progress: setWorking })).patterns); } catch (error) { setProblem(error); }
    setWorking(null);
  };
  return html`<section aria-label="Weights">
    <${Problem} error=${problem} />
    ${weights && html`<p>${percent(weights.overall_sparsity)} of ${number(weights.total_parameters)} parameters are zero: ${weights.sparsity_band} sparsity.</p>`}
    ${!found && html`<button onClick=${start} disabled=${Boolean(working)}>Look for structure</button>`}
    <${Working} on=${working} />
    ${found && html`<div class="wide tall" tabindex="0" role="region" aria-label="Structure of every matrix"><table>
      <thead><tr>${['matrix', 'zero', 'near zero', 'rows', 'columns', '4 × 4', '2:4', 'Gini', 'effective rank', 'outliers'].map(title => html`<th scope="col">${title}</th>`)}</tr></thead>
      <tbody>${found.map(one => html`<tr><th scope="row">${one.layer_name}</th>
        ${[one.zero, one.near_zero, one.zero_rows, one.zero_columns, one.zero_blocks, one.two_of_four].map(share => html`<td>${percent(share)}</td>`)}
        <td>${one.gini.toFixed(2)}</td><td>${one.effective_rank === null ? '–' : Math.round(one.effective_rank)}</td><td>${one.outliers.length}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}
