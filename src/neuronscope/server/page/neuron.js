// One neuron: what its weights say, and when asked what it does and what its absence does.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { get, job } from '/api.js';
import { number, Problem, signed, verdict, Working } from '/words.js';

// In one line: breaks are signs, and indentation does not push what matters out of sight.
const line = text => text.replace(/ *\n */g, '↵ ');

const INSTEAD = { zero: 'nothing', mean: 'its mean', repaired: 'what the others tell' };

export function Neuron({ place, selection, edited, setFocus }) {
  const [found, setFound] = useState(null);
  const [details, setDetails] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let current = true;
    setDetails(null);
    setProblem(null);
    if (place) get(`/api/neurons/${place[0]}/${place[1]}`).then(one => { if (current) setFound(one); }, setProblem);
    return () => { current = false; };
  }, [place && place.join()]);
  if (!place || !found) return problem && html`<section aria-label="One neuron"><${Problem} error=${problem} /></section>`;
  const at = selection.starts[place[0]] + place[1];
  const ask = async () => {
    setWorking({ description: 'looking at it', share: null });
    try {
      setDetails(await job(`/api/neurons/${place[0]}/${place[1]}?details=true`, undefined, { method: 'GET', progress: setWorking }));
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const toggle = () => { selection.edit(next => { next[at] ^= 1; }); edited(); };
  const own = details?.layer_index === place[0] && details.neuron_index === place[1] ? details : null;
  return html`<section aria-label="One neuron">
    <h2>Neuron ${found.neuron_index} of ${found.layer_name}</h2>
    <${Problem} error=${problem} />
    <dl>
      <dt>mean |weight|</dt><dd>${number(found.weight_magnitude)} (${found.band})</dd>
      <dt>rank in its layer</dt><dd>${found.weight_rank} of ${selection.sizes[found.layer_index]}</dd>
      <dt>norm of what reads it</dt><dd>${number(found.consumer_norm)}</dd>
    </dl>
    <div class="row">
      <button onClick=${toggle}>${selection.chosen[at] ? 'Keep it' : 'Choose it'}</button>
      ${!own && html`<button onClick=${ask} disabled=${Boolean(working)}>What does it do?</button>`}
    </div>
    <${Working} on=${working} />
    ${own && html`<div class="details">
      <table><caption>Without it alone</caption>
        <thead><tr><th scope="col">instead</th><th scope="col">impact</th><th scope="col">loss, nats</th></tr></thead>
        <tbody>${Object.entries(own.impact).map(([how, one]) => html`<tr><th scope="row">${INSTEAD[how]}</th>
          <td class=${verdict(one.impact_score)}>${one.impact_score.toFixed(4)}</td><td>${signed(one.metrics.loss_change)}</td></tr>`)}</tbody></table>
      <${Activations} of=${own.activations} />
      ${own.top_tokens.length > 0 && html`<h3>Where it is most active</h3>
        <ol class="tokens" tabindex="0" aria-label="Where it is most active">${own.top_tokens.map(one => html`<li><code>${line(one.before)}<mark>${line(one.token)}</mark>${line(one.after)}</code> <span>${number(one.activation)}</span></li>`)}</ol>`}
      <h3>Neurons that go with it</h3>
      <p class="row">${own.correlated.map(one => html`<button class="link" onClick=${() => setFocus([place[0], one.neuron_index])}>${one.neuron_index} (${one.correlation.toFixed(2)})</button>`)}</p>
    </div>`}
  </section>`;
}

function Activations({ of: { counts, edges, places } }) {
  const highest = Math.max(...counts);
  return html`<h3>Its activity at ${number(places)} places</h3>
    <svg class="activity" viewBox="0 0 ${counts.length} 30" preserveAspectRatio="none" role="img"
      aria-label="Places by activation, from ${number(edges[0])} to ${number(edges[edges.length - 1])}">
      ${counts.map((count, bin) => html`<rect x=${bin + 0.05} width="0.9" y=${30 - 30 * Math.sqrt(count / highest)} height=${30 * Math.sqrt(count / highest)} />`)}
    </svg>
    <p class="ends"><span>${number(edges[0])}</span><span>${number(edges[edges.length - 1])}</span></p>`;
}
