"""The page's words and tables by group and by hospital: a template that `TEMPLATE` includes."""

FAIRNESS = """
{% macro by_bins(estimate) %}{{ est(estimate.value, estimate.interval) }}{% endmacro %}
{% macro measures(channel, group) %}
{% for name in channel.metrics %}
  {% if name in group.metrics %}<td class="n">{{ by_bins(group.metrics[name]) }}</td>
  {% else %}<td class="n quiet">too few</td>{% endif %}
{% endfor %}
{% endmacro %}
{% macro counts(channel, group) %}
<td class="n">{{ count(group.cases) }}</td>
{% if channel.positive %}<td class="n">{{ count(group.positive) }}</td>{% endif %}
{% endmacro %}
{% macro head(channel, first) %}
<thead><tr><th scope="col">{{ first }}</th><th scope="col" class="n">Cases</th>
  {% if channel.positive %}<th scope="col" class="n">Positive</th>{% endif %}
  {% for name in channel.metrics %}<th scope="col" class="n">{{ name | metric }}</th>{% endfor %}
{% endmacro %}
{% macro blocks(channel, parts) %}
{% for block in parts %}
<tr class="part"><th scope="rowgroup" colspan="{{ channel.width }}">{{ block.label }}</th></tr>
{% for line in block.lines %}
<tr{% if not line.group.known %} class="apart"{% endif %}><th scope="row">{{ line.label }}
  {%- if line.note %} <span class="{{ "mark" if line.note == "worst" else "remark" }}">
    {{- line.note }}</span>{% endif %}</th>
  {{ counts(channel, line.group) }}{{ measures(channel, line.group) }}</tr>
{% endfor %}
{% if block.unreported %}
<tr class="apart"><td colspan="{{ channel.width }}" class="quiet">{{ block.unreported | join(", ") }}:
  no case reported; there was none, or hospitals withheld it</td></tr>
{% endif %}
{% endfor %}
{% endmacro %}
<section aria-labelledby="groups">
<h2 id="groups">By group{{ " and hospital" if fairness.heat else "" }}</h2>
{% if fairness.why_nothing %}
<p>{{ fairness.why_nothing }}</p>
{% else %}
<p>The model after round {{ fairness.round }} on patients that were never trained on, by what is known of
them and their images: {{ fairness.attributes | map("replace", "_", " ") | join(", ") }}. Hospitals count
{{ fairness.unit }} in bins of the model's answer, and the counts are added up
{{- " in secret" if run.in_secret }}: so these figures are of all cases together, not means over
hospitals.{% if fairness.threshold is not none %} A case is called positive from a probability of
{{ fairness.threshold | plain }}.{% endif %} In parentheses: 95 % intervals, of chance in who was held
out{{ " and of the noise that was added" if fairness.noisy }}, wider by what the bins may have moved a
figure.</p>
<dl class="tiles">
{% for tile in fairness.tiles %}
  <div class="tile third{{ " worst" if not loop.first }}"><dt>{{ tile.title }}</dt><dd>
    <div class="figure">{{ by_bins(tile.estimate) if tile.estimate else "–" }}
      {%- if tile.whose %} <small>{{ tile.whose }}</small>{% endif %}</div>
    <div class="quiet">{{ tile.remark }}</div></dd></div>
{% endfor %}
</dl>
<p>{% if fairness.withheld -%}
Withheld: {{ fairness.withheld }}. Hospitals put groups of fewer patients than their policy allows
together under "withheld"; they count in all cases.
{%- elif fairness.noisy -%}
Nothing is withheld, as every count holds noise: small groups are uncertain instead.
{%- else -%}
No hospital withheld a small group.
{%- endif %}
{% if fairness.silent %}
 No counts came from {{ fairness.silent[:8] | join(", ") }}
{%- if fairness.silent | length > 8 %} and {{ fairness.silent | length - 8 }} more{% endif -%}
: too few patients of a true class, or other held-out patients than before.
{% endif %}
{% if run.in_secret %} Of single hospitals no counts are known.{% endif %}
 Groups with fewer than {{ fairness.least }} cases of a label are shown, but not compared.</p>
{% for channel in fairness.channels %}
{% if channel.title %}<h3 class="apart">{{ channel.title }}</h3>{% endif %}
{% if channel.charts %}
<div class="charts">{% for chart in channel.charts %}{{ figure(chart) }}{% endfor %}</div>
{% endif %}
<div class="scroll pin groups" tabindex="0" role="region"
  aria-label="By group{{ ": " + channel.title if channel.title }}">
<table>{{ head(channel, "Group") }}</tr></thead><tbody>
{% if channel.total %}
<tr class="whole"><th scope="row">all cases</th>
  {{- counts(channel, channel.total) }}{{ measures(channel, channel.total) }}</tr>
{% endif %}
{{ blocks(channel, channel.single) }}
</tbody><tfoot><tr><th scope="row">moved by bins, at most</th><td></td>
  {%- if channel.positive %}<td></td>{% endif %}
  {% for name in channel.metrics %}<td class="n">{{ dec(channel.bounds.get(name)) }}</td>{% endfor %}
  </tr></tfoot></table></div>
{% if channel.pairs %}
<details><summary>Groups by two attributes together</summary>
<div class="scroll pin groups" tabindex="0" role="region"
  aria-label="By two attributes{{ ": " + channel.title if channel.title }}">
<table>{{ head(channel, "Group") }}</tr></thead><tbody>{{ blocks(channel, channel.pairs) }}</tbody>
</table></div></details>
{% endif %}
{% if channel.hospitals %}
<details><summary>The same by hospital, and what each withheld</summary>
<div class="scroll pin groups" tabindex="0" role="region"
  aria-label="Counted at hospitals{{ ": " + channel.title if channel.title }}">
<table>{{ head(channel, "Hospital") }}<th scope="col">Withheld</th></tr></thead><tbody>
{% for at in channel.hospitals %}
<tr><th scope="row">{{ at.hospital }}</th>
  {{- counts(channel, at.group) }}{{ measures(channel, at.group) }}
  <td class="why">{{ at.withheld or "nothing" }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
{% endfor %}
<details><summary>What the columns mean</summary>
<dl class="facts">
{% for name, meaning in fairness.meanings %}<dt>{{ name }}</dt><dd>{{ meaning }}</dd>{% endfor %}
</dl></details>
{% if fairness.gap_charts %}
<h3 class="apart">How far groups are apart</h3>
<div class="charts">{% for chart in fairness.gap_charts %}{{ figure(chart) }}{% endfor %}</div>
{% endif %}
{% if fairness.gaps %}
<details><summary>All gaps after round {{ fairness.round }}</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Gaps between groups">
<table><thead><tr><th scope="col">Groups by</th>
  {% if fairness.channels | length > 1 %}<th scope="col">Of</th>{% endif %}
  <th scope="col">Gap</th><th scope="col" class="n">Difference</th><th scope="col">Worst</th>
  <th scope="col">Best</th><th scope="col" class="n">Compared</th></tr></thead><tbody>
{% for gap in fairness.gaps %}
<tr><th scope="row">{{ gap.attributes | map("replace", "_", " ") | join(" and ") }}</th>
  {% if fairness.channels | length > 1 %}<td>{{ gap.channel }}</td>{% endif %}
  <td>{{ gap.metric | gap }}</td><td class="n">{{ by_bins(gap) }}</td>
  <td>{{ gap.worst | group if gap.worst else "–" }}</td>
  <td>{{ gap.best | group if gap.best else "–" }}</td><td class="n">{{ count(gap.groups) }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
{% endif %}
{% if fairness.heat %}
{% set heat = fairness.heat %}
<h3 class="apart">Hospitals by metric, after round {{ heat.round }}</h3>
<p>Each column is shaded from its best hospital (plain) to its worst (dark). A shade says who is behind,
not by how much: the last row does.
{%- if run.metrics_from == "noisy" %} The figures hold noise, so a shade may be chance.{% endif %}</p>
<div class="scroll pin heat" tabindex="0" role="region" aria-label="Hospitals by metric">
<table><thead><tr><th scope="col">Hospital</th>
  {% for name in heat.metrics %}<th scope="col" class="n">{{ name | metric }}</th>{% endfor %}
  </tr></thead><tbody>
{% for row in heat.rows %}
<tr><th scope="row">{{ row.hospital }}
  {%- if row.never_trained %} <span class="remark">never trained on</span>{% endif %}</th>
  {% if row.reason %}<td colspan="{{ heat.metrics | length }}" class="left">not evaluated:
    {{ row.reason | reason }}</td>
  {% else %}{% for name in heat.metrics %}{% set cell = row.cells.get(name) %}
  <td class="n{% if cell and cell.shade %} heat-{{ cell.shade }}{% endif %}">
    {{- dec(cell.value if cell else none) }}</td>{% endfor %}{% endif %}</tr>
{% endfor %}
</tbody><tfoot><tr><th scope="row">apart by</th>
  {% for name in heat.metrics %}<td class="n">{{ dec(heat.spread.get(name)) }}</td>{% endfor %}
  </tr></tfoot></table></div>
{% elif fairness.why_no_heat %}
<p>{{ fairness.why_no_heat }}</p>
{% endif %}
</section>
"""
