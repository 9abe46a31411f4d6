"""evaluate.py --attention: where the attention of each model goes, in tables, JSON, a picture."""

from ref import cli
from ref.files import write_atomically, write_json
from ref.report import attention
from ref.report.draw_attention import attention_svg
from ref.report.models import load_with_options, note_on_dropped, refuse_not_finite
from ref.report.tables import attention_table, wrapped
from ref.report.targets import description, size_text
from ref.training import processes


def report_attention(folders, data, targets, options):
    """Measure where the attention goes; write --json and --svg after each model, then print."""
    models = {}
    try:
        for folder in folders:
            models[folder] = measure_attention(folder, data, targets, options)
            if processes.is_first():
                write_attention(models, data, targets, options)
    finally:  # also where the next model fails
        if processes.is_first() and models:
            print_attention(models, data, targets, options)


def write_attention(models, data, targets, options):
    """Write what --json and --svg ask for."""
    if options.json:
        values = description(data, targets, options)
        write_json(options.json, values | attention.values_of(models))
    if options.svg:
        write_atomically(options.svg, attention_svg(models).encode())


def print_attention(models, data, targets, options):
    """Print the tables of all models."""
    heading_line = (
        f"{data.source}: attention over the prompts and targets of "
        f"{size_text(targets.user_ids, 'test users')}; means over heads"
    )
    notes = [line for note in data.notes for line in wrapped(note)]
    print("", *wrapped(heading_line), *notes, "", sep="\n")
    for name, measured in models.items():
        print(attention_table(name, measured, options.wide))
    for path in (options.json, options.svg):
        if path:
            print(f"wrote {path}")


def measure_attention(folder, data, targets, options):
    """Where the attention of a model goes, over the prompts and targets of the test users."""
    model, encoder, _ = load_with_options(folder, options, options.device)
    prompts = []
    for history, target in zip(targets.histories, targets.titles):
        texts = [data.titles[title] for title in history]
        prompts.append(encoder.encode(texts, data.titles[target]))
    if note := note_on_dropped(folder, encoder, sum(prompt.dropped for prompt in prompts)):
        processes.say(note)
    measured = attention.measure(model, with_progress(prompts, folder))
    refuse_not_finite(folder, "share of attention", measured.share)
    return measured


def with_progress(prompts, folder):
    """Yield the prompts, and show how many are done."""
    with cli.progress_bar(len(prompts), folder, "prompt", processes.is_first()) as bar:
        for prompt in prompts:
            yield prompt
            bar.update()
