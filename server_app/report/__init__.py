"""What a person looks at after (or during) a run: one self-contained HTML file.

    write_report(Path("runs/RUN"))                                    # → runs/RUN/report.html
    write_report(folder, samples=predict_samples(folder, cases))     # with pictures of public cases

`predict_samples` stands in `server_app.report.samples` and needs torch; the rest does not.
"""

from server_app.report.page import write_report
from server_app.report.pictures import Sample
from server_app.report.read import RunFolderError, read_run
from server_app.report.run import Run

__all__ = ["Run", "RunFolderError", "Sample", "read_run", "write_report"]
