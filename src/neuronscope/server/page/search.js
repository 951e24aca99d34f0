// The search for a smaller model: its Pareto front, each point of which can become the selection.

import { html, useEffect, useState } from '/vendor/htm-preact.js';
import { follow, get, job } from '/api.js';
import { number, percent, Problem, Working } from '/words.js';

// The search makes its metric larger; losses and distances are shown as people know them.
const shown = (metric, value) => number(['loss', 'distance'].includes(metric) ? -value : value);

export function Search({ card, selection, edited }) {
  const [goal, setGoal] = useState('tolerance');
  const [amount, setAmount] = useState('0.05');
  const [found, setFound] = useState(null);
  const [working, setWorking] = useState(null);
  const [problem, setProblem] = useState(null);
  const [taken, setTaken] = useState(null);
  const [tried, setTried] = useState([]);
  // Told in order, and all of it again after a lost connection: what is known is not added twice.
  const partial = point => setTried(known => known.some(one => one.parameters === point.parameters && one.metric === point.metric) ? known : [...known, point]);
  const shows = async search => {
    setProblem(null);
    setFound(null);
    setTaken(null);
    setTried([]);
    setWorking({ description: 'starting', share: null });
    try { setFound(await search); } catch (error) { setProblem(error); }
    setWorking(null);
  };
  useEffect(() => { // a search goes on without the page: the last one is taken up again
    let current = true;
    get('/api/jobs').then(({ jobs }) => {
      const last = jobs.find(one => one.kind === 'optimize' && one.model === card.name && ['queued', 'running', 'done'].includes(one.state));
      if (last && current) shows(follow(last.id, { progress: setWorking, partial }));
    }, () => {});
    return () => { current = false; };
  }, []);
  const start = event => {
    event.preventDefault();
    const value = Number(amount);
    shows(job('/api/pruning/optimize', goal === 'tolerance' ? { tolerance: value } : { target: { [goal]: value } }, { progress: setWorking, partial }));
  };
  const take = index => { selection.put(found.front[index].neurons); setTaken(index); edited(); };
  return html`<section aria-label="Search">
    <form class="row" onSubmit=${start}>
      <label>Smallest model with <select value=${goal} onChange=${event => { setGoal(event.target.value); setAmount(event.target.value === 'tolerance' ? '0.05' : '0.7'); }}>
        <option value="tolerance">a metric worse by at most</option><option value="params">this share of the parameters</option>
        <option value="flops">this share of the operations</option><option value="latency">this share of the time</option></select></label>
      <input type="number" step="any" min="0" aria-label="How much" value=${amount} onInput=${event => setAmount(event.target.value)} />
      <button class="main" disabled=${Boolean(working)}>Search</button>
    </form>
    <${Problem} error=${problem} />
    <${Working} on=${working} />
    ${working && tried.length > 1 && html`<${Front} found=${soFar(tried)} />`}
    ${found && (found.front.length ? html`<${Front} found=${found} taken=${taken} take=${take} />` : html`<p class="empty">No smaller model was good enough. Allow more, or search with more effort.</p>`)}
    ${!found && !working && html`<p class="empty">The search removes, measures, and shows what each size costs.</p>`}
  </section>`;
}

// The first that was judged is the dense model.
function soFar([dense, ...rest]) {
  return { metric: dense.name, dense: dense.metric, evaluations: rest.length + 1, front: rest, chosen: null };
}

function Front({ found, taken, take }) {
  const sizes = found.front.map(one => one.parameters);
  const values = [found.dense, ...found.front.map(one => one.metric)];
  const [left, right] = [Math.min(...sizes), 1];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = share => 4 + 92 * (share - left) / (right - left || 1);
  const y = value => 44 - 38 * (value - low) / (high - low || 1);
  return html`<p>${number(found.evaluations)} models were tried; dense: ${found.metric} ${shown(found.metric, found.dense)}. ${take ? 'A point becomes the selection.' : 'More are being tried.'}</p>
    <svg class="front" viewBox="0 0 100 50" role="img" aria-label="${found.metric} over the share of the parameters that stays">
      <path d="M4 46H98" />${take && html`<path d=${[...found.front].sort((a, b) => a.parameters - b.parameters).map((one, index) => `${index ? 'L' : 'M'}${x(one.parameters)} ${y(one.metric)}`).join('')} />`}
      <circle class="dense" cx=${x(1)} cy=${y(found.dense)} r="1.2" />
      ${found.front.map((one, index) => html`<circle class=${index === taken ? 'taken' : ''} cx=${x(one.parameters)} cy=${y(one.metric)} r="1.4" onClick=${() => take?.(index)} />`)}
    </svg>
    <p class="ends"><span>${percent(left)} of the parameters</span><span>higher is better</span><span>100 %</span></p>
    <ul class="points">${found.front.map((one, index) => html`<li>
      ${take ? html`<button class="link" aria-pressed=${index === taken} onClick=${() => take(index)}>${percent(one.parameters)} of the parameters</button>` : html`<span>${percent(one.parameters)} of the parameters</span>`}
      <span>${found.metric} ${shown(found.metric, one.metric)}</span> ${index === found.chosen && html`<b>fits best</b>`}</li>`)}</ul>`;
}
