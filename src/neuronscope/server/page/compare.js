// Other models beside the current one.

import { html, useState } from '/vendor/htm-preact.js';
import { job } from '/api.js';
import { textsOf } from '/simulation.js';
import { megabytes, number, percent, Problem, signed, Working } from '/words.js';

export function Compare({ card, models, text }) {
  const others = Object.values(models?.models ?? {}).filter(one => one.name !== card.name);
  const [wanted, setWanted] = useState([]);
  const [found, setFound] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const start = async () => {
    setProblem(null);
    setWorking({ description: 'comparing', share: null });
    const body = { models: wanted };
    if (text.trim()) body.input_texts = textsOf(text);
    try { setFound(await job('/api/compare', body, { progress: setWorking })); } catch (error) { setProblem(error); }
    setWorking(null);
  };
  const flip = name => setWanted(wanted.includes(name) ? wanted.filter(one => one !== name) : [...wanted, name]);
  return html`<section aria-label="Compare models">
    <fieldset class="row"><legend>Beside ${card.name}</legend>
      ${others.map(one => html`<label><input type="checkbox" checked=${wanted.includes(one.name)} onChange=${() => flip(one.name)} /> ${one.name}</label>`)}
      <button class="main" onClick=${start} disabled=${!wanted.length || Boolean(working)}>Compare</button></fieldset>
    <${Problem} error=${problem} />
    <${Working} on=${working} />
    ${found?.models && html`<div class="wide" tabindex="0" role="region" aria-label="Comparison"><table>
      <thead><tr>${['model', 'parameters', 'size', 'latency, ms', 'loss, nats', 'impact', 'first choices that stay', 'same neurons'].map(title => html`<th scope="col">${title}</th>`)}</tr></thead>
      <tbody>${Object.entries(found.models).map(([name, one]) => html`<tr><th scope="row">${name}</th><td>${number(one.parameters)}</td><td>${megabytes(one.bytes)}</td>
        <td>${number(one.latency_ms)}</td><td>${number(one.loss)}</td><td>${one.metrics ? one.metrics.score.toFixed(3) : '–'}</td><td>${percent(one.metrics?.top1_agreement)}</td>
        <td>${found.layers?.[name] ? found.layers[name].map(layer => layer.same ?? '–').join(', ') : '–'}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}
