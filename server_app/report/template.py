"""The report's page as a Jinja2 template: in a Python file, because Flower bundles no other."""

TEMPLATE = """<!doctype html>
{% macro num(value, shown) %}
{%- if value is none %}–{% else %}<data value="{{ value }}">{{ shown }}</data>{% endif %}
{%- endmacro %}
{% macro dec(value) %}{{ num(value, value | decimal) }}{% endmacro %}
{% macro time(value) %}{{ num(value, value | duration) }}{% endmacro %}
{% macro bytes(value) %}{{ num(value, value | size) }}{% endmacro %}
{% macro count(value) %}{{ num(value, value | whole) }}{% endmacro %}
{% macro est(value, interval) %}
{% set shown, _, between = (value | estimate(interval)).partition(" ") %}
{{- num(value, shown) }}{% if between %} <span class="interval">{{ between }}</span>{% endif %}
{%- endmacro %}
{% macro figure(chart) %}
<figure>
  <figcaption><h3>{{ chart.title }}</h3><p>{{ chart.description }}</p></figcaption>
  {{ chart.svg }}
  <details><summary>The numbers of this figure</summary>
  <div class="scroll pin" tabindex="0" role="region" aria-label="Numbers: {{ chart.title }}">
  <table><thead><tr><th scope="col">{{ chart.first }}</th>
    {% for name in chart.columns %}<th scope="col" class="n">{{ name }}</th>{% endfor %}
    </tr></thead><tbody>
  {% for number, cells in chart.rows %}
  <tr><th scope="row">{{ number }}</th>
    {% for cell in cells %}<td class="n">{{ cell }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody></table></div></details>
</figure>
{% endmacro %}
{% macro share(part, whole) -%}
{{ part }} of {{ whole }}
{%- endmacro %}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ run.name }}: report</title>
<style>{{ css | safe }}</style>
</head>
<body>
<a class="skip" href="#quality">Skip to the results</a>
<div class="wrap">
<header>
  <p class="eyebrow">Consilium · report of a federated run
    {%- if run.experiment.get("name") %} · experiment {{ run.experiment["name"] }}{% endif %}</p>
  <h1>{{ run.name }}</h1>
  <p><span class="state {{ run.state }}">{{ run.state }}</span>
    <span class="quiet">started {{ run.started | moment }} · last word {{ run.updated | moment }}
    </span></p>
  <p class="lead">{{ summary }}</p>
  {% if run.message %}
  <p class="notice" role="note">{{ run.message }}</p>
  {% endif %}
  {% if run.experiment_intact is sameas false %}
  <p class="notice" role="note"><strong>experiment.json is not the experiment that ran:</strong>
    it does not have the SHA-256 that the run recorded.</p>
  {% endif %}
  {% if run.broken_lines %}
  <p class="notice" role="note">{{ counted(run.broken_lines, "line") }} of metrics.jsonl could not
    be read, as after a sudden stop; what they told is missing here.</p>
  {% endif %}

  <dl class="tiles">
    {% if run.metrics_from != "none" %}
    {% set size = "third" if fairness.worst else "main" %}
    <div class="tile {{ size }}">
      <dt>{{ label }}, {{ overall.name }}</dt>
      <dd>
        <div class="figure">{{ est(final.overall.get(headline),
          final.overall_intervals.get(headline)) if final else "–" }}</div>
        <div class="quiet">{% if final %}{{ overall.how }}; after round {{ final.round }}
          {%- if untrained %}; untrained {{ est(*untrained) }}{% endif %}
          {%- else %}not evaluated yet{% endif %}</div>
      </dd>
    </div>
    {% if not run.in_secret %}
    <div class="tile {{ size }} worst">
      <dt>{{ label }} at the worst-served hospital</dt>
      <dd>
        <div class="figure">{% if worst %}
          {{- est(worst.value, final.intervals(headline).get(worst.hospital) if final else none) }}
          <small>{{ worst.hospital }}</small>{% else %}–{% endif %}</div>
        <div class="quiet">{% if best %}best-served: {{ best[0] }},
          {{ est(best[1], final.intervals(headline).get(best[0])) }}{% endif %}</div>
      </dd>
    </div>
    {% endif %}
    {% endif %}
    {% if fairness.worst %}
    <div class="tile {{ size if run.metrics_from != "none" else "main" }} worst">
      <dt>{{ fairness.worst.title }}</dt>
      <dd>
        <div class="figure">{{ est(fairness.worst.estimate.value, fairness.worst.estimate.interval) }}
          <small>{{ fairness.worst.whose }}</small></div>
        <div class="quiet">{{ fairness.worst.remark }}; see <a href="#groups">By group</a></div>
      </dd>
    </div>
    {% endif %}
    {% if run.in_secret %}
    <div class="tile {{ "third" if fairness.worst and run.metrics_from != "none" else "main" }}">
      <dt>Hospitals in the smallest sum that was opened</dt>
      <dd>
        <div class="figure">{% if sending.smallest %}{{ count(sending.smallest.together) }}
          <small>of {{ run.hospitals | length }}, round {{ sending.smallest.number }}</small>
          {%- else %}–{% endif %}</div>
        <div class="quiet">of no hospital alone could the coordinator read an update or a figure; see
          <a href="#sending">Secure aggregation</a></div>
      </dd>
    </div>
    {% endif %}
    {% if privacy is not none %}
    {% set cost, scarce = privacy.costliest, privacy.scarcest %}
    <div class="tile main">
      <dt>ε of this run, at the hospital where it is largest</dt>
      <dd>
        <div class="figure">{% if cost %}{{ num(cost.spent.run_epsilon,
          cost.spent.run_epsilon | at_most) }} <small>{{ cost.hospital }}</small>
          {%- else %}–{% endif %}</div>
        <div class="quiet">for one patient{% if cost %}, δ {{ cost.spent.delta | power }}{% endif %};
          see <a href="#privacy">Privacy</a></div>
      </dd>
    </div>
    <div class="tile main">
      <dt>Budget left, at the hospital where it is scarcest</dt>
      <dd>
        <div class="figure">{% if scarce %}{{ num(scarce.spent.left, scarce.spent.left | at_least) }}
          <small>of {{ scarce.spent.budget | plain }}, {{ scarce.hospital }}</small>
          {%- else %}–{% endif %}</div>
        <div class="quiet">ε that its ledger still allows, over all runs</div>
      </dd>
    </div>
    {% endif %}
    <div class="tile"><dt>Rounds</dt><dd>
      <div class="figure">{{ run.rounds_done }}
        {%- if run.planned_rounds is not none %} <small>of {{ run.planned_rounds }}</small>
        {%- endif %}
      </div></dd></div>
    <div class="tile"><dt>Time in rounds</dt><dd>
      <div class="figure">{{ time(seconds) }}</div></dd></div>
    <div class="tile"><dt>Data moved</dt><dd>
      <div class="figure">{{ num((bytes_down or 0) + (bytes_up or 0),
        ((bytes_down or 0) + (bytes_up or 0)) | size) }}</div>
      <div class="quiet">{{ bytes_down | size }} to hospitals, {{ bytes_up | size }} back</div>
      </dd></div>
    <div class="tile"><dt>Hospitals</dt><dd>
      <div class="figure">{{ run.hospitals | length }}</div>
      <div class="quiet">{% if patients is not none %}{{ counted(patients, "patient") }}
        {{- ", as they declare" if privacy is not none else " trained on" }}
        {%- endif %}</div></dd></div>
  </dl>
  <nav aria-label="Sections"><ul>
    <li><a href="#quality">Quality
      {{- " over all hospitals" if run.in_secret else " by hospital" }}</a></li>
    <li><a href="#groups">By group</a></li>
    <li><a href="#privacy">Privacy</a></li>
    {% if sending is not none %}
    <li><a href="#sending">
      {{- "Secure aggregation" if sending.in_secret else "Codec and bytes" }}</a></li>
    {% endif %}
    <li><a href="#curves">Curves</a></li>
    <li><a href="#rounds">Rounds and absences</a></li>
    {% if samples %}<li><a href="#samples">Sample predictions</a></li>{% endif %}
    <li><a href="#ran">What ran</a></li>
    <li><a href="#protection">What is protected</a></li>
  </ul></nav>
</header>

<main>
{% include "quality" %}

{% include "fairness" %}

{% include "privacy" %}

{% include "sending" %}

<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
{% if charts %}
<div class="charts">
{% for chart in charts %}
{{ figure(chart) }}
{% endfor %}
</div>
{% else %}
<p>There is nothing to draw yet.</p>
{% endif %}
</section>

<section aria-labelledby="rounds">
<h2 id="rounds">Rounds and absences</h2>
{% if run.rounds %}
{% if absences %}
<p>A round is finished with the hospitals that answered well, as long as enough of them did. Who was
asked and left, and why:</p>
<div class="scroll" tabindex="0" role="region" aria-label="Who left rounds, and why">
<table><thead><tr><th scope="col">Hospital</th><th scope="col">Why</th>
  <th scope="col" class="n">Rounds left</th><th scope="col">Which</th></tr></thead><tbody>
{% for a in absences %}
<tr><th scope="row">{{ a.hospital }}</th>
  <td class="why"><strong class="left">{{ a.label }}</strong><br>
    <span class="quiet">{{ a.sentence }}</span></td>
  <td class="n">{{ a.rounds | length }}</td>
  <td>{{ a.rounds[:12] | join(", ") }}{% if a.rounds | length > 12 %} …{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p>Every hospital that was asked gave a good answer in every round.</p>
{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="Rounds">
<table><thead><tr><th scope="col" class="n">Round</th><th scope="col">Started (UTC)</th>
  <th scope="col" class="n">Time</th>
  {% set alone = privacy is none and not run.in_secret %}
  {% if alone %}<th scope="col" class="n">Slowest training</th>{% endif %}
  <th scope="col" class="n">Sent</th><th scope="col" class="n">Back</th>
  <th scope="col" class="n">Step norm</th><th scope="col" class="n">Took part</th>
  <th scope="col">Left, and why</th></tr></thead><tbody>
{% for r in run.rounds %}
<tr><th scope="row" class="n">{{ r.number }}</th>
  <td class="when">{{ r.started | moment_short }}</td>
  <td class="n">{{ time(r.seconds) }}</td>
  {% if alone %}<td class="n">{{ time(r.longest()) }}</td>{% endif %}
  <td class="n">{{ bytes(r.total("bytes_down")) }}</td>
  <td class="n">{{ bytes(r.total("bytes_up")) }}</td>
  <td class="n">{{ dec(r.norm) }}</td>
  <td class="n">{{ share(r.answers | selectattr("ok") | list | length, r.answers | length) }}</td>
  <td class="why">{% for a in r.answers %}{% if not a.ok %}
    <div><strong>{{ a.hospital }}</strong>: <span class="left">{{ why(a) | reason }}</span>
    {%- if a.attempts and a.attempts > 1 %}
    <span class="quiet">(asked {{ a.attempts }} times)</span>{% endif %}</div>
    {% elif a.attempts and a.attempts > 1 %}
    <div class="quiet">{{ a.hospital }} answered when asked {{ a.attempts }} times</div>
    {% endif %}{% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
<details><summary>Every hospital in every round</summary>
{% if listed | length < run.rounds | length %}
<p>The last {{ listed | length }} rounds; all of them are in metrics.jsonl.</p>
{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="Every hospital in every round">
<table><thead><tr><th scope="col" class="n">Round</th><th scope="col">Hospital</th>
  <th scope="col">Status</th>
  {% if alone %}
  <th scope="col" class="n">Patients</th>
  <th scope="col" class="n">Images</th><th scope="col" class="n">Training loss</th>
  <th scope="col" class="n">Training time</th>
  {% elif privacy is not none %}
  {% if not run.in_secret %}<th scope="col" class="n">Patients (declared)</th>{% endif %}
  <th scope="col" class="n">ε of this run</th><th scope="col" class="n">ε of all runs</th>
  {% endif %}
  <th scope="col" class="n">Received</th>
  <th scope="col" class="n">Sent</th>
  {% if not run.in_secret %}<th scope="col" class="n">Update (norm)</th>{% endif %}
  </tr></thead><tbody>
{% for r in listed %}{% for a in r.answers %}
<tr><td class="n">{{ r.number }}</td><th scope="row">{{ a.hospital }}</th>
  <td>{% if a.ok %}took part
    {%- else %}<span class="left">{{ why(a) | reason }}</span>{% endif %}</td>
  {% if not run.in_secret %}<td class="n">{{ count(a.patients) }}</td>{% endif %}
  {% if alone %}
  <td class="n">{{ count(a.examples) }}</td>
  <td class="n">{{ dec(a.loss) }}</td>
  <td class="n">{{ time(a.seconds) }}</td>
  {% elif privacy is not none %}
  {% set run_epsilon = a.spent.run_epsilon if a.spent else none %}
  {% set epsilon = a.spent.epsilon if a.spent else none %}
  <td class="n">{{ num(run_epsilon, run_epsilon | at_most) }}</td>
  <td class="n">{{ num(epsilon, epsilon | at_most) }}</td>
  {% endif %}
  <td class="n">{{ bytes(a.bytes_down) }}</td>
  <td class="n">{{ bytes(a.bytes_up) }}</td>
  {% if not run.in_secret %}<td class="n">{{ dec(a.update_norm) }}</td>{% endif %}</tr>
{% endfor %}{% endfor %}
</tbody></table></div></details>
{% else %}
<p>No round has come to its end yet.</p>
{% endif %}
</section>

{% if samples %}
<section aria-labelledby="samples">
<h2 id="samples">Sample predictions</h2>
<p>Public or phantom cases that lie on the coordinator's own disk, shown to give an idea of the
model. No image of a hospital is here, and a few pictures are no measure of quality.
{% if samples | rejectattr("truth", "none") | list %}<br><span class="quiet">
  <span class="key truth"></span>true outline &nbsp; <span class="key predicted"></span>the model's
  outline</span>{% endif %}</p>
<div class="samples">
{% for sample in samples %}
{% set masked = sample.truth is not none or sample.predicted is not none %}
<figure>
  <div class="pair{{ "" if masked else " single" }}">
    {% if masked %}{{ picture(sample, outlines=False) }}{% endif %}
    {{ picture(sample, outlines=True) }}
  </div>
  <figcaption>
  <h3>{{ sample.caption }}</h3>
  {% if sample.dice() is not none %}<p>Dice of this slice, all labels together:
    {{ num(sample.dice(), sample.dice() | decimal(2)) }}</p>{% endif %}
  {% if sample.scores %}
  <p class="verdict">The model says {{ sample.said }}
    {%- if sample.truth_name == sample.said %}: right
    {%- elif sample.truth_name is not none %}: <span class="left">wrong, it is
    {{ sample.truth_name }}</span>{% endif %}</p>
  <div class="scores">
    {% for name, score in sample.scores.items() %}
    <span>{{ name }}</span>
    <span class="bar"><span style="width: {{ "%.1f" | format(score * 100) }}%"></span></span>
    <span class="n">{{ dec(score) }}</span>
    {% endfor %}
  </div>
  {% elif sample.truth_name is not none %}<p>True: {{ sample.truth_name }}</p>{% endif %}
  </figcaption>
</figure>
{% endfor %}
</div>
</section>
{% endif %}

<section aria-labelledby="ran">
<h2 id="ran">What ran</h2>
<div class="card">
<dl class="facts">
  <dt>Experiment, SHA-256</dt><dd><code>{{ run.experiment_sha256 or "–" }}</code>
    {%- if run.experiment_intact %} <span class="quiet">checked against experiment.json</span>
    {%- elif run.experiment_intact is none %} <span class="quiet">could not be checked</span>
    {%- else %} <strong class="left">does not match experiment.json</strong>{% endif %}</dd>
  <dt>Code</dt><dd>version {{ run.code_version or "–" }}
    {%- if run.code_commit %}, commit <code>{{ run.code_commit }}</code>{% endif %}
    {%- if run.code_dirty %} <strong class="left">with changes that were not committed</strong>
    {%- endif %}</dd>
  {% if run.code_bundle_sha256 %}
  <dt>Code bundle, SHA-256</dt><dd><code>{{ run.code_bundle_sha256 }}</code></dd>
  {% endif %}
  <dt>Started by</dt><dd>{{ run.user or "–" }}</dd>
  <dt>Federation</dt><dd>{{ run.federation or "–" }}</dd>
  <dt>Flower runs</dt><dd>{{ run.flower_runs | join(", ") or "–" }}</dd>
  {% if run.classes %}<dt>Classes</dt><dd>{{ run.classes | join(", ") }}</dd>{% endif %}
  <dt>Hospitals</dt><dd>{{ run.hospitals | join(", ") or "–" }}</dd>
</dl>
</div>
<div class="settings">
{% for name, rows in settings %}
<div class="card"><h3>{{ name }}</h3><dl>
  {% for key, value in rows %}<dt>{{ key | replace("_", " ") }}</dt><dd>{{ value }}</dd>{% endfor %}
</dl></div>
{% endfor %}
</div>
{% if run.experiment_text %}
<details><summary>The whole experiment, as it was sent to the hospitals (JSON)</summary>
<pre>{{ run.experiment_text }}</pre></details>
{% endif %}
</section>

{% include "protection" %}
</main>
<footer class="quiet">Made from the run's own records; this file loads nothing and holds no scripts.
</footer>
</div>
</body>
</html>
"""
