"""The page's words on secure aggregation and the codec: a Jinja2 template that `TEMPLATE` includes."""

SENDING = """
{% macro share(value) %}{{ num(value, value | percent) }}{% endmacro %}
{% macro beside(value) %}
{% if value is not none %}<span class="interval">{{ share(value) }}</span>{% endif %}
{%- endmacro %}
{% if sending is not none %}
<section aria-labelledby="sending">
<h2 id="sending">{{ "Secure aggregation, and bytes" if sending.in_secret else "Codec and bytes" }}</h2>
{% if sending.encrypted %}
<p>Updates and figures left the hospitals <strong>encrypted</strong> (CKKS, Cheon et al. 2017), under a
key of this run that a hospital made and sealed for the others. The coordinator added what it could not
read; the hospitals decrypt the sum{% if sending.least is not none %} over {{ sending.least }} or more of
them{% endif %}, move the model, each alike, and tell the coordinator the sums of the figures. So
{% if run.released %}it has the final model because the experiment asked for it and hospitals' policies
allow it; of the rounds before{% else %}the model is at the hospitals alone
(<code>hospital model export {{ run.name }}</code>); of its updates{% endif %} the coordinator has
nothing that it can read, and no single hospital's counts, losses or metrics are in this report.
{%- if sending.smallest %} The smallest sum that was opened is that of
{{ counted(sending.smallest.together, "hospital") }}, in round
{{ sending.smallest.number }}.{% endif %}</p>
{% if sending.private %}
<p>Each hospital had added its noise before it encrypted, and its ε is counted as though everybody read
its update: encryption makes no ε smaller, and ε holds if it fails.</p>
{% endif %}
<div class="columns">
  <div class="card"><h3>What is promised</h3><ul>
    <li>The coordinator reads no update and no sum of updates; of figures it learns their sums.</li>
    <li>A hospital opens one sum a round, when above two thirds of the run's hospitals signed who is in
      it and which model they hold, and no sum over fewer than its own policy allows
      (<code>policy.least_hospitals</code>).</li>
    <li>A hospital that vanishes takes its own update away and nothing more; when it comes back it opens
      the rounds that it missed.</li></ul></div>
  <div class="card"><h3>It holds if</h3><ul>
    <li><strong>no hospital works together with the coordinator</strong>: each holds the key, and with
      the coordinator's help could read every other hospital's update;</li>
    <li>the hospitals accepted the roster after comparing fingerprints;</li>
    <li>hospitals run the code that they installed, and ring learning with errors (N = 4096, 192 bits of
      security by the Homomorphic Encryption Standard), X25519, Ed25519, SHA-256, AES-256 and their
      systems' randomness hold.</li></ul></div>
  <div class="card caution"><h3>What is not promised</h3><ul>
    <li>What the model tells those who hold it, the hospitals: that is for differential privacy, which
      this run {{ "has" if sending.private else "has not" }}.</li>
    <li>That the sum is right: who lies about its update changes the model, and nobody sees who.</li>
    <li>Who took part, when, for how long and with how many bytes
      {%- if sending.weighted %}; and each hospital's weight, its number of patients
      {{- " as it declares it" if sending.private }}{% endif %}.</li>
    <li>That nobody is served badly: a low figure of one hospital is hidden in the mean.</li></ul></div>
</div>
{% elif sending.in_secret %}
<p>Updates and figures left the hospitals as integers under <strong>masks</strong>, which come off the
sum over all of them alone (Bonawitz et al. 2017, the variant against active adversaries). The
coordinator could read the sum{% if sending.least is not none %} over {{ sending.least }} or more
hospitals{% endif %}, and of no hospital an update or a figure alone. So no single hospital's counts,
losses or metrics are in this report: nobody but the hospital itself knows them, by design.
{%- if sending.smallest %} The smallest sum that was opened is that of
{{ counted(sending.smallest.together, "hospital") }}, in round
{{ sending.smallest.number }}.{% endif %}</p>
{% if sending.private %}
<p>Each hospital had added its noise before the masks, and its ε is counted as though the coordinator
read its update: the masks make no ε smaller, and ε holds if they fail. The two promises stand side by
side.</p>
{% endif %}
<div class="columns">
  <div class="card"><h3>What is promised</h3><ul>
    <li>Of the hospitals' updates and figures the coordinator learns their sum and nothing else,
      whether it keeps to the protocol and is curious, or sends what it likes in its steps.</li>
    <li>A hospital opens no round twice, and no sum over fewer hospitals than the experiment, its own
      policy (<code>policy.least_hospitals</code>) and two thirds of those that gave keys allow.</li>
    <li>A hospital that vanishes at any step takes its own update away and nothing more.</li></ul></div>
  <div class="card"><h3>It holds if</h3><ul>
    <li>fewer than a third of the hospitals in a sum work together with the coordinator;</li>
    <li>the hospitals accepted the roster after comparing fingerprints: each key on it is the key of the
      hospital that it is named for;</li>
    <li>all hospitals got the same experiment and the same model. Nothing in the sum shows them if not: a
      coordinator could send the others what leaves their updates empty, and read one as the rest;</li>
    <li>hospitals run the code that they installed, and X25519, Ed25519, SHA-256, AES-256 and their
      systems' randomness hold.</li></ul></div>
  <div class="card caution"><h3>What is not promised</h3><ul>
    <li>What the sum tells, or the difference of two sums over hospitals that differ by one: that is for
      differential privacy, which this run {{ "has" if sending.private else "has not" }}.</li>
    <li>That the sum is right: who lies about its update changes the model, and nobody sees who.</li>
    <li>Who took part, when, for how long and with how many bytes
      {%- if sending.weighted %}; and each hospital's weight, its number of patients
      {{- " as it declares it" if sending.private }}{% endif %}.</li>
    <li>That nobody is served badly: a low figure of one hospital is hidden in the mean.</li></ul></div>
</div>
{% endif %}
<dl class="facts way">
  <dt>An update, on its way up</dt><dd>{{ sending.chain | join(" → ") or "float32, as it is" }}
    {%- if sending.encrypted %} → encrypted
    {%- elif sending.in_secret %} → masked, with room for the sum
    {%- elif sending.chain %} → packed → zstd{% endif %}
    {%- if sending.feedback %}; what a round lost is added to the next, at the hospital{% endif %}</dd>
  <dt>The model, on its way down</dt><dd>
    {%- if sending.encrypted %}does not go: hospitals get the encrypted sum
    {%- else %}{{ sending.down }}{% endif %}</dd>
  <dt>Bytes up, all rounds</dt><dd>{{ bytes(bytes_up) }}
    {%- if sending.up_share is not none %}: {{ share(sending.up_share) }} of
    float32{% endif %}</dd>
  <dt>Bytes down, all rounds</dt><dd>{{ bytes(bytes_down) }}
    {%- if sending.down_share is not none %}: {{ share(sending.down_share) }} of
    float32{% endif %}</dd>
</dl>
{% if sending.legs %}
<p class="quiet">Under the bytes stands what they are of float32, which would take
  {% if sending.model_bytes is none %}as much as the model{% else %}
  {{- bytes(sending.model_bytes) }} each way{% endif %} for each hospital.
  {%- if sending.in_secret %} Keys and signatures count in: of a small model they are a large part.
  {%- endif %}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Sums and bytes by round">
<table><thead><tr><th scope="col" class="n">Round</th>
  {% if sending.in_secret %}<th scope="col" class="n">In the sum</th>
  <th scope="col" class="n">Patients</th>
  {% if not sending.private %}<th scope="col" class="n">Training loss</th>{% endif %}{% endif %}
  {% for _, label, _ in sending.steps %}<th scope="col" class="n">{{ label }}</th>{% endfor %}
  <th scope="col" class="n">Down</th><th scope="col" class="n">Up</th></tr></thead><tbody>
{% for leg in sending.legs %}
<tr><th scope="row" class="n">{{ leg.number }}</th>
  {% if sending.in_secret %}<td class="n">{{ count(leg.together) }}</td>
  <td class="n">{{ count(leg.patients) }}</td>
  {% if not sending.private %}<td class="n">{{ dec(leg.loss) }}</td>{% endif %}{% endif %}
  {% for step, _, _ in sending.steps %}
  <td class="n">{{ time(leg.steps.get(step)) }}</td>{% endfor %}
  <td class="n">{{ bytes(leg.down) }} {{ beside(leg.down_share) }}</td>
  <td class="n">{{ bytes(leg.up) }} {{ beside(leg.up_share) }}</td></tr>
{% endfor %}
</tbody>
{% if sending.steps %}
<tfoot><tr><th scope="row" class="n">All</th><td></td><td></td>
  {% if not sending.private %}<td></td>{% endif %}
  {% for step, _, _ in sending.steps %}<td class="n">{{ time(sending.seconds(step)) }}</td>{% endfor %}
  <td class="n">{{ bytes(bytes_down) }} {{ beside(sending.down_share) }}</td>
  <td class="n">{{ bytes(bytes_up) }} {{ beside(sending.up_share) }}</td></tr></tfoot>
{% endif %}
</table></div>
{% if sending.steps %}
<p class="quiet">{% for _, label, meaning in sending.steps %}{{ label }}: {{ meaning }}. {% endfor %}
{%- if sending.ahead %}Where no time stands under Keys, they had come with the round
before.{% endif %}</p>
{% endif %}
{% endif %}
</section>
{% endif %}
"""
