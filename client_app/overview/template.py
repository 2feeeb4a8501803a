"""The overview's page as a Jinja2 template: in a Python file, because Flower bundles no other."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Images of this hospital</title>
<style>{{ css | safe }}</style>
</head>
<body>
<p class="banner" role="note"><strong>For this hospital's eyes only:</strong>
shows images of patients. Do not send it, and delete it when it has served.</p>
<div class="wrap">
<header>
  <h1>Images of this hospital</h1>
  <p class="quiet">What the index holds, as of {{ made }}.</p>
  <dl class="tiles">
    {% for name, count, remark in tiles %}
    <div class="tile"><dt>{{ name }}</dt><dd><div class="figure">{{ count | whole }}</div>
      {% if remark %}<div class="quiet">{{ remark }}</div>{% endif %}</dd></div>
    {% endfor %}
  </dl>
  <nav aria-label="Sections"><ul>
    <li><a href="#series">Series</a></li>
    <li><a href="#aside">Set aside</a></li>
    {% if shown %}<li><a href="#pictures">Pictures</a></li>{% endif %}
  </ul></nav>
</header>
<main>
<section aria-labelledby="series">
<h2 id="series">Series</h2>
{% if charts %}
<p class="quiet">How many series, radiographs and files there are of each kind. The volumes of one
series count once.</p>
<div class="charts">
{% for chart in charts %}
<div class="card">
  <table class="bars">
    <caption>{{ chart.title }}</caption>
    <thead class="unseen"><tr><th scope="col">{{ chart.title }}</th>
      <th scope="col">series</th><td></td></tr></thead>
    <tbody>
    {% for bar in chart.bars %}
    <tr><th scope="row">{{ bar.word }}</th><td class="n">{{ bar.count | whole }}</td>
      <td class="track"><svg aria-hidden="true" viewBox="0 0 100 8" preserveAspectRatio="none">
        <rect width="{{ '%.2f' | format(100 * bar.share) }}" height="8" rx="1"/></svg></td></tr>
    {% endfor %}
    </tbody>
  </table>
</div>
{% endfor %}
</div>
{% else %}
<p>There is no image here that could be read.</p>
{% endif %}
{% if tally.notes %}
<h3>Found and handled</h3>
<ul>
{% for note, count in (tally.notes.items() | list)[:10] %}
<li>{{ count | whole }} × {{ note }}</li>
{% endfor %}
</ul>
{% endif %}
</section>
<section aria-labelledby="aside">
<h2 id="aside">Set aside</h2>
{% if tally.set_aside %}
<p class="quiet">Files and volumes that no task can learn from. Which files they are is told by
<code>hospital index --rejected FILE.csv</code>.</p>
<div class="scroll" tabindex="0" role="region" aria-label="What was set aside">
<table>
<thead><tr><th scope="col" class="n">Number</th><th scope="col">Reason</th>
  <th scope="col">What was found, such as</th><th scope="col">What would mend it</th></tr></thead>
<tbody>
{% for reason, left in tally.set_aside.items() %}
<tr><td class="n">{{ left.count | whole }}</td><th scope="row">{{ reason | replace("_", " ") }}</th>
  <td>{{ left.example.detail or "–" }}</td><td>{{ reason.remedy }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>Nothing was set aside.</p>
{% endif %}
</section>
{% if shown %}
<section aria-labelledby="pictures">
<h2 id="pictures">Pictures</h2>
<p class="quiet">The middle slice of {{ shown | length }} images, evenly over modality and
manufacturer, black and white at the 1st and 99th percentile. Axial slices show anterior on top,
coronal and sagittal ones superior; the patient's right is at the left of the picture, in sagittal
slices anterior is. Radiographs are shown as they were stored. Look for what should not be here:
writing burnt into the image, other body regions, turned or squeezed anatomy.</p>
<div class="pictures">
{% for item in shown %}
<figure>
  {% if item.picture.uri %}
  <div class="frame"><img src="{{ item.picture.uri }}" width="{{ item.picture.width }}"
    height="{{ item.picture.height }}"
    alt="{{ item.description }}, {{ item.picture.plane }}"></div>
  {% else %}
  <div class="frame none"><span>{{ item.picture.failure | replace("_", " ") }}</span></div>
  {% endif %}
  <figcaption><b>{{ item.number }}</b>{% if item.picture.plane %} {{ item.picture.plane }}{% endif %}
    {% for line in item.lines %}<br>{{ line }}{% endfor %}</figcaption>
</figure>
{% endfor %}
</div>
</section>
{% endif %}
</main>
<footer class="quiet">Made by <code>hospital index --report</code>. This page loads nothing and
holds no identifier, no pseudonym and no path.</footer>
</div>
</body>
</html>
"""
