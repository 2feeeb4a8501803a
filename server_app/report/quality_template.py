"""The page's words and tables on how good the model is: a template that `TEMPLATE` includes."""

QUALITY = """
<section aria-labelledby="quality">
<h2 id="quality">{{ "Quality over all hospitals" if run.in_secret else "Quality by hospital" }}</h2>
{% set shown = final or (run.evaluations[-1] if run.evaluations else none) %}
{% if shown and run.in_secret %}
<p>The model after round {{ shown.round }},
{%- if run.metrics_from == "public" %} on images that hospitals declare public.
{%- else %} on patients that were never trained on.
{%- endif %} The metrics were summed {{ "encrypted" if run.encrypted else "under masks" }} over
{% if shown.summed_over is none %}the hospitals
{%- else %}{{ counted(shown.summed_over | length, "hospital") }}{% endif %}
{%- if shown.held_out %}, {{ counted(shown.held_out, "patient") }} together{% endif %}: what the figure
of a single hospital is, nobody but it knows, and a hospital that is served badly does not show here.
{{ overall.sentence }}</p>
{% if run.metrics_from == "noisy" %}
<p>What was summed are sums over held-out patients to which each hospital had added noise with a standard
deviation of {{ metrics_noise | plain }} patients; the metrics are computed from the whole. In
parentheses: how far the noise may have moved a figure (95 %, approximate; who happened to be held out
is a chance of its own, which is not in it).</p>
{% endif %}
<div class="scroll whole pin" tabindex="0" role="region" aria-label="Quality after each round">
<table>
<thead><tr><th scope="col">Round</th>
  {% for name in run.metrics %}<th scope="col" class="n">{{ name | metric }}</th>{% endfor %}
  <th scope="col" class="n">In the sum</th>
  {% if sizes_known %}<th scope="col" class="n">Patients</th>{% endif %}
  <th scope="col">Not in it, and why</th></tr></thead>
<tbody>
{% for e in run.evaluations %}
<tr><th scope="row">{{ e.round }}{% if e.round == 0 %} (untrained){% endif %}</th>
  {% for name in run.metrics %}
  <td class="n">{{ est(e.overall.get(name), e.overall_intervals.get(name)) }}</td>{% endfor %}
  <td class="n">{{ e.summed_over | length if e.summed_over is not none else "–" }}</td>
  {% if sizes_known %}<td class="n">{{ count(e.held_out) }}</td>{% endif %}
  <td>{% for one in e.measured if not one.ok %}{{ one.hospital }}:
    <span class="left">{{ one.reason | reason }}</span>{{ ", " if not loop.last }}
    {%- else %}–{% endfor %}</td></tr>
{% endfor %}
</tbody></table>
</div>
<details><summary>What the columns mean</summary>
<dl class="facts">
{% for name, meaning in meanings %}{% if meaning %}<dt>{{ name }}</dt><dd>{{ meaning }}</dd>
{% endif %}{% endfor %}
</dl></details>
{% elif final %}
<p>The model after round {{ final.round }},
{%- if run.metrics_from == "public" %} on images that each hospital declares public: the figures are
exact, and none of its patients was looked at.
{%- else %} on patients that were never trained on, at each hospital
on its own.
{%- endif %} {{ "One figure for all" if run.metrics_from == "noisy" else "A mean" }} can hide a
hospital that is served badly: the worst value of each column is marked. {{ overall.sentence }}
{%- if final.left_out %} {{ final.left_out.hospital }} was left out of training and of every other
figure: its row tells how the model does at a hospital that it has never seen.{% endif %}
{%- if own_models %} This strategy leaves layers at hospitals, so each row is of the hospital's own
model.{% endif %}
{%- if personal %} Personal: of the model that each hospital trains for itself beside the global
one.{% endif %}</p>
{% if run.metrics_from == "noisy" %}
<p>The hospitals sent no metric, but sums over their held-out patients to which they had added noise with
a standard deviation of {{ metrics_noise | plain }} patients; the metrics are computed from these. In
parentheses: how far the noise may have moved a figure (95 %, approximate; who happened to be held out
is a chance of its own, which is not in it). Where these ranges overlap, which hospital is worst may be
chance.</p>
{% endif %}
<div class="scroll whole pin" tabindex="0" role="region" aria-label="Quality by hospital">
<table>
<thead><tr><th scope="col">Hospital</th>
  {% for name in run.metrics %}<th scope="col" class="n">{{ name | metric }}</th>{% endfor %}
  {% if sizes_known %}
  <th scope="col" class="n">Images</th><th scope="col" class="n">Patients</th>{% endif %}</tr></thead>
<tbody>
{% for row in final_measured %}
<tr><th scope="row">{{ row.hospital }}</th>
  {% if row.ok or row.metrics %}
  {% for name in run.metrics %}
  <td class="n">{% if worst_by_metric.get(name) == row.hospital -%}
    <span class="mark">worst</span> {% endif %}
    {{- est(row.metrics.get(name), row.intervals.get(name)) }}</td>
  {% endfor %}
  {% else %}
  <td colspan="{{ run.metrics | length }}" class="left">
    not evaluated: {{ row.reason | reason }}</td>
  {% endif %}
  {% if sizes_known %}
  <td class="n">{{ row.examples | whole }}</td><td class="n">{{ row.patients | whole }}</td>
  {%- endif %}</tr>
{% endfor %}
</tbody>
<tfoot>{% if final.left_out %}
<tr class="out"><th scope="row">{{ final.left_out.hospital }}
  <span class="remark">never trained on</span></th>
  {% if final.left_out.reason %}
  <td colspan="{{ run.metrics | length }}" class="left">
    not evaluated: {{ final.left_out.reason | reason }}</td>
  {% else %}{% for name in run.metrics %}
  <td class="n">{{ dec(final.left_out.metrics.get(name)) }}</td>{% endfor %}{% endif %}
  {% if sizes_known %}<td class="n">{{ count(final.left_out.examples) }}</td>
  <td class="n">{{ count(final.left_out.patients) }}</td>{% endif %}</tr>
{% endif %}
<tr><th scope="row">{{ overall.name | capitalize }}</th>
  {% for name in run.metrics %}
  <td class="n">{{ est(final.overall.get(name), final.overall_intervals.get(name)) }}</td>
  {% endfor %}{% if sizes_known %}<td></td><td></td>{% endif %}</tr></tfoot>
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
  <th scope="col" class="n">{{ overall.line | capitalize }}</th>
  <th scope="col">Worst</th></tr></thead><tbody>
{% for e in run.evaluations %}{% set values, intervals = e.values(name), e.intervals(name) %}
<tr><th scope="row">{{ e.round }}{% if e.round == 0 %} (untrained){% endif %}</th>
  {% for hospital in run.hospitals %}
  <td class="n">{{ est(values.get(hospital), intervals.get(hospital)) }}</td>{% endfor %}
  <td class="n">{{ est(e.overall.get(name), e.overall_intervals.get(name)) }}</td>
  <td>{{ e.worst[name].hospital if name in e.worst else "–" }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
</details>
{% elif run.metrics_from == "none" %}
<p>No metric left the hospitals: the experiment has <code>privacy.metrics=none</code>. Measure the model
on images of your own, or run with <code>privacy.metrics=public</code> or
<code>privacy.metrics=noisy</code>, which costs some of the budget.</p>
{% else %}
<p>No evaluation has been recorded yet.</p>
{% endif %}
</section>
"""
