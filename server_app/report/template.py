"""The report's page as a Jinja2 template: in a Python file, because Flower bundles no other."""

TEMPLATE = """<!doctype html>
{% macro num(value, shown) %}
{%- if value is none %}–{% else %}<data value="{{ value }}">{{ shown }}</data>{% endif %}
{%- endmacro %}
{% macro dec(value) %}{{ num(value, value | decimal) }}{% endmacro %}
{% macro time(value) %}{{ num(value, value | duration) }}{% endmacro %}
{% macro bytes(value) %}{{ num(value, value | size) }}{% endmacro %}
{% macro count(value) %}{{ num(value, value | whole) }}{% endmacro %}
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
    <div class="tile main">
      <dt>{{ label }}, mean over hospitals</dt>
      <dd>
        <div class="figure">{{ dec(final.overall.get(headline))
          if final else "–" }}</div>
        <div class="quiet">{% if final %}weighted by held-out patients; after round {{ final.round }}
          {%- if untrained is not none %}; untrained {{ dec(untrained) }}{% endif %}
          {%- else %}not evaluated yet{% endif %}</div>
      </dd>
    </div>
    <div class="tile main worst">
      <dt>{{ label }} at the worst-served hospital</dt>
      <dd>
        <div class="figure">{% if worst %}{{ dec(worst.value) }}
          <small>{{ worst.hospital }}</small>{% else %}–{% endif %}</div>
        <div class="quiet">{% if best %}best-served: {{ best[0] }},
          {{ dec(best[1]) }}{% endif %}</div>
      </dd>
    </div>
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
      <div class="quiet">{% if patients is not none %}{{ counted(patients, "patient") }} trained on
        {%- endif %}</div></dd></div>
  </dl>
  <nav aria-label="Sections"><ul>
    <li><a href="#quality">Quality by hospital</a></li>
    <li><a href="#curves">Curves</a></li>
    <li><a href="#rounds">Rounds and absences</a></li>
    {% if samples %}<li><a href="#samples">Sample predictions</a></li>{% endif %}
    <li><a href="#ran">What ran</a></li>
    <li><a href="#protection">What is protected</a></li>
  </ul></nav>
</header>

<main>
<section aria-labelledby="quality">
<h2 id="quality">Quality by hospital</h2>
{% if final %}
<p>The model after round {{ final.round }}, on patients that were never trained on, at each hospital
on its own. A mean can hide a hospital that is served badly: the worst value of each column is
marked. The mean is weighted by the hospitals' held-out patients.</p>
<div class="scroll whole pin" tabindex="0" role="region" aria-label="Quality by hospital">
<table>
<thead><tr><th scope="col">Hospital</th>
  {% for name in run.metrics %}<th scope="col" class="n">{{ name | metric }}</th>{% endfor %}
  <th scope="col" class="n">Images</th><th scope="col" class="n">Patients</th></tr></thead>
<tbody>
{% for row in final_measured %}
<tr><th scope="row">{{ row.hospital }}</th>
  {% if row.ok or row.metrics %}
  {% for name in run.metrics %}
  <td class="n">{% if worst_by_metric.get(name) == row.hospital -%}
    <span class="mark">worst</span> {% endif %}{{ dec(row.metrics.get(name)) }}</td>
  {% endfor %}
  {% else %}
  <td colspan="{{ run.metrics | length }}" class="left">
    not evaluated: {{ row.reason | reason }}</td>
  {% endif %}
  <td class="n">{{ row.examples | whole }}</td><td class="n">{{ row.patients | whole }}</td></tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row">Mean over hospitals</th>
  {% for name in run.metrics %}
  <td class="n">{{ dec(final.overall.get(name)) }}</td>
  {% endfor %}<td></td><td></td></tr></tfoot>
</table>
</div>
<details><summary>What the columns mean</summary>
<dl class="facts">
{% for name, meaning in meanings %}{% if meaning %}<dt>{{ name }}</dt><dd>{{ meaning }}</dd>
{% endif %}{% endfor %}
</dl></details>
<details><summary>Each metric after each round</summary>
{% for name in run.metrics %}
<h3>{{ name | metric }}</h3>
<div class="scroll pin" tabindex="0" role="region" aria-label="{{ name | metric }} after each round">
<table><thead><tr><th scope="col">Round</th>
  {% for hospital in run.hospitals %}<th scope="col" class="n">{{ hospital }}</th>{% endfor %}
  <th scope="col" class="n">Mean</th><th scope="col">Worst</th></tr></thead><tbody>
{% for e in run.evaluations %}{% set values = e.values(name) %}
<tr><th scope="row">{{ e.round }}{% if e.round == 0 %} (untrained){% endif %}</th>
  {% for hospital in run.hospitals %}
  <td class="n">{{ dec(values.get(hospital)) }}</td>{% endfor %}
  <td class="n">{{ dec(e.overall.get(name)) }}</td>
  <td>{{ e.worst[name].hospital if name in e.worst else "–" }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
</details>
{% else %}
<p>No evaluation has been recorded yet.</p>
{% endif %}
</section>

<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
{% if charts %}
<div class="charts">
{% for chart in charts %}
<figure>
  <figcaption><h3>{{ chart.title }}</h3><p>{{ chart.description }}</p></figcaption>
  {{ chart.svg }}
  <details><summary>The numbers of this figure</summary>
  <div class="scroll pin" tabindex="0" role="region" aria-label="Numbers: {{ chart.title }}">
  <table><thead><tr><th scope="col">Round</th>
    {% for name in chart.columns %}<th scope="col" class="n">{{ name }}</th>{% endfor %}
    </tr></thead><tbody>
  {% for number, cells in chart.rows %}
  <tr><th scope="row">{{ number }}</th>
    {% for cell in cells %}<td class="n">{{ chart.show(cell) }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody></table></div></details>
</figure>
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
  <th scope="col" class="n">Time</th><th scope="col" class="n">Slowest training</th>
  <th scope="col" class="n">Sent</th><th scope="col" class="n">Back</th>
  <th scope="col" class="n">Step norm</th><th scope="col" class="n">Took part</th>
  <th scope="col">Left, and why</th></tr></thead><tbody>
{% for r in run.rounds %}
<tr><th scope="row" class="n">{{ r.number }}</th>
  <td class="when">{{ r.started | moment_short }}</td>
  <td class="n">{{ time(r.seconds) }}</td>
  <td class="n">{{ time(r.longest()) }}</td>
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
  <th scope="col">Status</th><th scope="col" class="n">Patients</th>
  <th scope="col" class="n">Images</th><th scope="col" class="n">Training loss</th>
  <th scope="col" class="n">Training time</th><th scope="col" class="n">Received</th>
  <th scope="col" class="n">Sent</th><th scope="col" class="n">Update (norm)</th>
  </tr></thead><tbody>
{% for r in listed %}{% for a in r.answers %}
<tr><td class="n">{{ r.number }}</td><th scope="row">{{ a.hospital }}</th>
  <td>{% if a.ok %}took part
    {%- else %}<span class="left">{{ why(a) | reason }}</span>{% endif %}</td>
  <td class="n">{{ count(a.patients) }}</td>
  <td class="n">{{ count(a.examples) }}</td>
  <td class="n">{{ dec(a.loss) }}</td>
  <td class="n">{{ time(a.seconds) }}</td>
  <td class="n">{{ bytes(a.bytes_down) }}</td>
  <td class="n">{{ bytes(a.bytes_up) }}</td>
  <td class="n">{{ dec(a.update_norm) }}</td></tr>
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

<section aria-labelledby="protection">
<h2 id="protection">What is protected, and what is not</h2>
<div class="columns">
  <div class="card"><h3>Stays at the hospital</h3><ul>
    <li>Images and masks.</li>
    <li>Names, patient numbers, dates of birth and file names.</li>
    <li>The key from which pseudonyms are made, and the pseudonyms.</li></ul></div>
  <div class="card"><h3>Leaves the hospital</h3><ul>
    <li>Each round, the change of the model's weights.</li>
    <li>Numbers of patients and images, training loss, seconds of work.</li>
    <li>The metrics on its held-out patients, one value for all of them.</li>
    <li>A reason from a fixed list when it does not take part.</li></ul></div>
  <div class="card caution"><h3>Not protected in this version</h3><ul>
    <li>The coordinator can read each hospital's update: there is no secure aggregation. From
      updates, something about the training images can sometimes be inferred.</li>
    <li>There is no differential privacy: no noise is added, and no bound is proven on what the
      model, updates, counts and metrics tell of one patient.</li>
    <li>Treat run folder, model and this report as confidential among the partners.</li></ul></div>
</div>
<p class="quiet">The figures come from held-out patients of the hospitals that trained the model.
They are no clinical validation, and the model is not a medical device.</p>
</section>
</main>
<footer class="quiet">Made from the run's own records; this file loads nothing and holds no scripts.
</footer>
</div>
</body>
</html>
"""
