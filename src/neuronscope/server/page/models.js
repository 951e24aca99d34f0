// The models that were made here, with what can be done with each; and loading any other by its name.

import { html, useState } from '/vendor/htm-preact.js';
import { job } from '/api.js';
import { number, Problem, Working } from '/words.js';

export function Models({ card, models, changed, turnTo }) {
  const [name, setName] = useState('');
  const [tuning, setTuning] = useState(null);
  const made = Object.values(models?.models ?? {}).filter(one => one.made).reverse();
  return html`<section aria-label="Models">
    <form class="row" onSubmit=${event => { event.preventDefault(); turnTo(name.trim()); }}>
      <label>Load another <input value=${name} maxlength="200" placeholder="a name on the hub" onInput=${event => setName(event.target.value)} /></label>
      <button disabled=${!name.trim()}>Load it</button>
    </form>
    <h3>Made here</h3>
    ${made.length ? html`<ul>${made.map(one => html`<li key=${one.name}>
      <b>${one.made.title}</b> <span>from ${one.made.base}</span>
      ${one.name === card.name ? html`<span class="state done">looked at now</span>` : html`<button onClick=${() => turnTo(one.name)}>Look at it</button>`}
      <a href=${one.made.download} aria-label=${`Download ${one.made.title}`}>download</a>
      <a href=${one.made.report} target="_blank" rel="noopener" aria-label=${`Report of ${one.made.title}`}>report</a>
      <button aria-expanded=${tuning === one.name} onClick=${() => setTuning(tuning === one.name ? null : one.name)} aria-label=${`Fine-tune ${one.made.title}`}>Fine-tune</button>
      ${tuning === one.name && html`<${Tune} made=${one} changed=${changed} />`}</li>`)}</ul>`
      : html`<p class="empty">None yet. Choose neurons, and make the smaller model: it is listed here, and the one it is made from stays.</p>`}
  </section>`;
}

function Tune({ made, changed }) {
  const [steps, setSteps] = useState('50');
  const [taught, setTaught] = useState(true);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const [found, setFound] = useState(null);
  const start = async event => {
    event.preventDefault();
    setProblem(null);
    setFound(null);
    setWorking({ description: 'starting', share: null });
    const body = { model_name: made.name, steps: Number(steps), distill: taught };
    try {
      setFound(await job('/api/finetune/jobs', body, { progress: setWorking }));
      changed();
    } catch (error) { setProblem(error); }
    setWorking(null);
  };
  // Losses are kept as numbers that are better when larger.
  const shown = value => number(['loss', 'distance'].includes(found.metric) ? -value : value);
  return html`<form class="row tune" onSubmit=${start}>
    <label>Steps <input type="number" min="1" max="100000" value=${steps} onInput=${event => setSteps(event.target.value)} /></label>
    <label><input type="checkbox" checked=${taught} onChange=${event => setTaught(event.target.checked)} /> taught by ${made.made.base}</label>
    <button class="main" disabled=${Boolean(working)}>Start</button>
    <${Problem} error=${problem} />
    <${Working} on=${working} />
    ${found && html`<p class="made" role="status">After ${number(found.steps)} steps: ${found.metric} on data it has not seen ${shown(found.before)} → ${shown(found.after)}. The tuned model is in this list.</p>`}
  </form>`;
}
