"""The page's words on privacy, as Jinja2 templates that `template.TEMPLATE` includes."""

PRIVACY = """
<section aria-labelledby="privacy">
<h2 id="privacy">Privacy</h2>
{% if privacy is none %}
<p>{% if run.private is none %}experiment.json is missing, so that this page cannot tell whether the
run had differential privacy: take updates, counts and metrics for exact.
{%- else %}Without differential privacy:
{{ "the sums of updates, counts and metrics" if run.in_secret else "updates, counts and metrics" }} are
exact, and no bound is proven on what they tell of one patient.{% endif %}</p>
{% else %}
<p>This run has differential privacy whose unit is the <strong>patient</strong>: whatever leaves a
hospital is about as likely with all images of any one of its patients as without them. How nearly so
is what <strong>ε</strong> says; smaller is stronger. Each hospital keeps a ledger, which adds up ε
over all its runs and refuses what would pass its budget. The figures are the hospitals' own words,
which the coordinator cannot check.</p>
{% if privacy.large %}
<p class="notice" role="note"><strong>ε is large at
  {% for account in privacy.large -%}
  {{ account.hospital }} ({{ account.spent.epsilon | at_most }}){{ "." if loop.last else ", " }}
  {%- endfor %}</strong> Above about {{ large_epsilon | plain }}, ε says little of what can be learnt
  of one patient; do not rely on it alone.</p>
{% endif %}
<div class="scroll whole pin" tabindex="0" role="region" aria-label="Privacy by hospital">
<table class="accounts">
<thead><tr><th scope="col">Hospital</th>
  {% if not run.in_secret %}<th scope="col" class="n">Patients<br>(declared)</th>{% endif %}
  <th scope="col" class="n">ε of<br>this run</th>
  <th scope="col" class="n">ε of all<br>its runs</th>
  <th scope="col" class="n">Budget</th>
  <th scope="col">Left</th>
  <th scope="col" class="n">A guess is<br>right at most</th>
  <th scope="col" class="n">δ</th>
  <th scope="col" class="n">Steps</th>
  <th scope="col" class="n">Charges</th>
  {% if privacy.accountant is none %}<th scope="col">Accountant</th>{% endif %}</tr></thead>
<tbody>
{% for account in privacy.accounts %}
{% set spent = account.spent %}
<tr><th scope="row">{{ account.hospital }}
  {%- if account.refused_since is not none %}
  <div class="mark alone">budget spent</div>
  <div class="since">left from round {{ account.refused_since }}</div>{% endif %}</th>
  {% if not run.in_secret %}<td class="n">{{ count(account.patients) }}</td>{% endif %}
  {% if spent is none %}
  <td colspan="{{ 9 if privacy.accountant is none else 8 }}" class="quiet">
    none of its answers came: it told nothing of its ledger</td>
  {% else %}
  <td class="n">{{ num(spent.run_epsilon, spent.run_epsilon | at_most) }}</td>
  <td class="n">{{ num(spent.epsilon, spent.epsilon | at_most) }}</td>
  <td class="n">{{ num(spent.budget, spent.budget | at_least) }}</td>
  <td class="budget">{% if account.used is not none %}
    {{ num(spent.left, spent.left | at_least) }}
    <div class="gauge{{ " low" if account.used > 0.9 }}" aria-hidden="true"><span
      style="width: {{ "%.1f" | format(100 - account.used * 100) }}%"></span></div>
    {%- else %}–{% endif %}</td>
  <td class="n">{{ num(account.right_guess, account.right_guess | share_at_most) }}</td>
  <td class="n">{{ num(spent.delta, spent.delta | power) }}</td>
  <td class="n">{{ count(account.steps) }}</td>
  <td class="n">{{ count(spent.charges) }}</td>
  {% if privacy.accountant is none %}
  <td class="accountant">{{ spent.accountant or "–" }}</td>
  {% endif %}
  {% endif %}</tr>
{% endfor %}
</tbody></table></div>
{% if privacy.refusing %}
<p class="quiet">Where a budget is spent, some ε may be left: less than the next round would cost, or
more than the hospital allows one run.</p>
{% endif %}
<div class="columns two">
  <div class="card"><h3>What ε means</h3>
    <p>Say it is as likely beforehand that a given patient took part as that not. Whoever guesses from
    all that has left the hospital, knowing anything else besides, is right at most
    e<sup>ε</sup> / (1 + e<sup>ε</sup>) of the time (δ aside): {{ privacy.examples }}. Tossing a coin
    is right 50&nbsp;% of the time.</p>
    <p>It is a bound on the strongest guess, not a measure of any one attack. Above about
    {{ large_epsilon | plain }} it excludes next to nothing. ε grows more slowly than the number of
    rounds: <code>hospital ledger</code> tells a hospital how many more its budget allows.</p></div>
  <div class="card caution"><h3>What it does not cover</h3><ul>
    <li>A patient in several hospitals: the hospitals' ε add up. One patient under two numbers counts
      as two.</li>
    <li>What holds for people in general: a model may tell of a person what it learnt from others.</li>
    <li>Whether, when and how fast a hospital answers, the reason why it does not, and the size that it
      declares.</li>
    <li>Who can read a hospital's own disks, and software there that does not do what it says.</li>
    <li>More in <code>docs/security.md</code>.</li></ul></div>
</div>
{% if privacy.charts %}
<div class="charts">
{% for chart in privacy.charts %}{{ figure(chart) }}{% endfor %}
</div>
{% endif %}
<h3 class="apart">What the words mean, and what this run has</h3>
<div class="scroll whole" tabindex="0" role="region" aria-label="Terms of privacy">
<table class="terms"><thead><tr><th scope="col">Term</th><th scope="col">Here</th>
  <th scope="col">Meaning</th></tr></thead><tbody>
{% for term in privacy.terms %}
<tr><th scope="row">{{ term.name }}</th>
  <td{{ ' class="quiet"' | safe if "by hospital" in term.value }}>{{ term.value }}</td>
  <td>{{ term.meaning }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
</section>
"""

PROTECTION = """
<section aria-labelledby="protection">
<h2 id="protection">What is protected, and what is not</h2>
<div class="columns">
  <div class="card"><h3>Stays at the hospital</h3><ul>
    <li>Images and masks.</li>
    <li>Names, patient numbers, dates of birth and file names.</li>
    <li>The key from which pseudonyms are made, and the pseudonyms.</li>
    {% if privacy is not none %}
    <li>Exact numbers of patients and images, training loss, sizes of gradients, seconds of work.</li>
    {% elif run.in_secret %}
    <li>Its own update, training loss, numbers of images and metrics, in a form that can be read.</li>
    <li>Seconds of work.</li>
    {% endif %}
    {% if privacy is not none %}
    <li>{% if run.metrics_from == "none" %}Every metric.
      {%- else %}Exact metrics on its patients.{% endif %}</li>
    {% endif %}</ul></div>
  <div class="card"><h3>Leaves the hospital</h3><ul>
    {% if run.in_secret %}
    {% set cover = "Encrypted likewise" if run.encrypted else "Under the same masks" %}
    {% if run.encrypted %}
    <li>Once a run, a public key, and the run's key sealed for the other hospitals; each round,
      signatures.</li>
    <li>The change of the model's weights, encrypted for the hospitals
      {{- ", with noise added before" if privacy is not none }}.</li>
    {% else %}
    <li>Each round, public keys and secret shares sealed for the other hospitals, and signatures.</li>
    <li>The change of the model's weights as integers under masks
      {{- ", with noise added before" if privacy is not none }}: without the others' it tells
      nothing.</li>
    {% endif %}
    {% if privacy is none %}
    <li>{{ cover }}: numbers of patients and images, the loss, and the metrics on held-out
      patients.</li>
    {% elif run.metrics_from == "noisy" %}
    <li>{{ cover }}: sums over its held-out patients with noise.</li>
    {% elif run.metrics_from == "public" %}
    <li>{{ cover }}: metrics on images that it declares public.</li>
    {% endif %}
    {% if sending.weighted %}
    <li>Its weight in the sum, which the coordinator and all hospitals see:
      {{ "the number of patients that it declares" if privacy is not none
         else "on how many patients it trains" }}.</li>
    {% endif %}
    {% if privacy is not none %}
    <li>Of its ledger: ε, budget, δ, accountant, how many charges, and a hash of them.</li>
    {% endif %}
    {% elif privacy is none %}
    <li>Each round, the change of the model's weights.</li>
    <li>Numbers of patients and images, training loss, seconds of work.</li>
    <li>The metrics on its held-out patients, one value for all of them.</li>
    {% else %}
    <li>Each round, the change of the model's weights, made of sums with noise.</li>
    <li>About how many patients it has: a public number that it declares.</li>
    {% if run.metrics_from == "noisy" %}
    <li>Sums over its held-out patients with noise, from which metrics are computed.</li>
    {% elif run.metrics_from == "public" %}
    <li>Exact metrics on images that it declares public, and how many these are.</li>
    {% endif %}
    <li>Of its ledger: ε, budget, δ, accountant, how many charges, and a hash of them.</li>
    {% endif %}
    <li>A reason from a fixed list when it does not take part.</li></ul></div>
  <div class="card caution"><h3>Not protected in this version</h3><ul>
    {% if privacy is none %}
    {% if run.encrypted %}
    <li>The model, which the hospitals hold: from it something about the training images can sometimes be
      inferred. One hospital that works together with the coordinator can read every update.</li>
    {% elif run.in_secret %}
    <li>The sums of updates, and the model made of them: from these too, something about the training
      images can sometimes be inferred.</li>
    {% else %}
    <li>The coordinator can read each hospital's update: there is no secure aggregation. From
      updates, something about the training images can sometimes be inferred.</li>
    {% endif %}
    {% if run.private is none %}
    <li>Whether there is differential privacy is not known, since experiment.json is missing.</li>
    {% else %}
    <li>There is no differential privacy: no noise is added, and no bound is proven on what the
      model, updates, counts and metrics tell of one patient.</li>
    {% endif %}
    {% else %}
    {% if run.in_secret %}
    <li>What the sums tell of one patient is bounded by ε, and what
      {{ "the encryption" if run.encrypted else "the masks" }} would let out if
      {{ "it" if run.encrypted else "they" }} failed, by the same ε.</li>
    {% else %}
    <li>The coordinator can read each hospital's update: there is no secure aggregation. What it can
      learn of one patient from them is bounded by ε, and by ε alone.</li>
    {% endif %}
    <li>What ε does not cover stands under <a href="#privacy">Privacy</a>.</li>
    {% endif %}
    {% if run.in_secret %}
    <li>What {{ "encryption does" if run.encrypted else "masks do" }} not promise, and what
      {{ "it assumes" if run.encrypted else "they assume" }}, stands under
      <a href="#sending">Secure aggregation</a>.</li>
    {% endif %}
    <li>Treat run folder, model and this report as confidential among the partners.</li></ul></div>
</div>
<p class="quiet">
{%- if run.metrics_from == "none" %}No hospital measured this model.
{%- elif run.metrics_from == "public" %}The figures come from images that the hospitals declare public.
{%- else %}The figures come from held-out patients of the hospitals that trained the model.
{%- endif %}

They are no clinical validation, and the model is not a medical device.</p>
</section>
"""
