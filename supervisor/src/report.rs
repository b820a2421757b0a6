//! Problems found in a manifest, and how they are shown.
//!
//! * A [`Report`] owns the texts it points into (the manifest and each `--set` argument), so it outlives its parser.
//! * All problems of one check are reported together, in the order of the text.
//! * Spans are clamped to the text and to character boundaries here: no input makes rendering panic.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

/// One text that problems can point into.
#[derive(Clone, Debug)]
pub struct Source {
    /// What the user calls it: a path, or `--set httpd.listen=…`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

/// A range of bytes of one source (an index into the report's sources).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which source.
    pub source: usize,
    /// Byte range in its text.
    pub span: Range<usize>,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    title: String,
    primary: Option<(Place, String)>,
    others: Vec<(Place, String)>,
    help: Option<String>,
}

impl Problem {
    /// A problem of the whole input, such as a file that cannot be read.
    pub fn general(title: impl Into<String>) -> Self {
        Self { title: title.into(), primary: None, others: Vec::new(), help: None }
    }

    /// A problem at `place`; `label` is printed under the marked text.
    pub fn at(place: &Place, title: impl Into<String>, label: impl Into<String>) -> Self {
        Self { primary: Some((place.clone(), label.into())), ..Self::general(title) }
    }

    /// Marks another place that has to do with it.
    pub fn and(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.others.push((place.clone(), label.into()));
        self
    }

    /// Says what to do.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The first line, without place or help.
    pub fn title(&self) -> &str {
        &self.title
    }
}

/// Everything that is wrong with a manifest. Never empty when returned as an error.
///
/// `Display` gives the rustc-like text without colours.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(crate) sources: Vec<Source>,
    pub(crate) problems: Vec<Problem>,
}

/// A problem as data, for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// The manifest or `--set` argument, where there is one.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What is wrong with the marked text.
    pub label: Option<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Report {
    /// A report with one problem that has no place.
    pub fn general(title: impl Into<String>, help: Option<String>) -> Self {
        let problem = Problem { help, ..Problem::general(title) };
        Self { sources: Vec::new(), problems: vec![problem] }
    }

    /// The problems, in the order of the text.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The text for a person, each problem in the form of a compiler's error.
    pub fn render(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&renderer.render(&self.groups(problem)));
            text.push_str("\n\n");
        }
        let count = self.problems.len();
        text.push_str(&format!("{count} problem{}\n", if count == 1 { "" } else { "s" }));
        text
    }

    /// The same as data.
    pub fn facts(&self) -> Vec<Fact> {
        self.problems.iter().map(|problem| self.fact(problem)).collect()
    }

    pub(crate) fn sort(&mut self) {
        let position = |problem: &Problem| problem.primary.as_ref().map(|(place, _)| (place.source, place.span.start));
        self.problems.sort_by_key(position);
    }

    fn fact(&self, problem: &Problem) -> Fact {
        let mut fact = Fact {
            file: None,
            line: None,
            column: None,
            message: problem.title.clone(),
            label: None,
            help: problem.help.clone(),
        };
        if let Some((place, label)) = &problem.primary
            && let Some(source) = self.sources.get(place.source)
        {
            let (line, column) = line_and_column(&source.text, place.span.start);
            fact.file = Some(source.name.clone());
            fact.line = Some(line);
            fact.column = Some(column);
            fact.label = Some(label.clone()).filter(|label| !label.is_empty());
        }
        fact
    }

    fn groups<'a>(&'a self, problem: &'a Problem) -> Vec<Group<'a>> {
        let mut group = Level::ERROR
            .primary_title(problem.title.as_str())
            .elements(std::iter::empty::<Snippet<'a, annotate_snippets::Annotation<'a>>>());
        let mut marks: Vec<(&Place, &str, AnnotationKind)> = Vec::new();
        if let Some((place, label)) = &problem.primary {
            marks.push((place, label, AnnotationKind::Primary));
        }
        marks.extend(problem.others.iter().map(|(place, label)| (place, label.as_str(), AnnotationKind::Context)));
        for (index, source) in self.in_order_of_first_mark(&marks) {
            let mut snippet = Snippet::source(source.text.as_str()).path(source.name.as_str());
            for (place, label, kind) in marks.iter().filter(|(place, ..)| place.source == index) {
                let annotation = kind.span(clamp(&source.text, &place.span));
                snippet = snippet.annotation(if label.is_empty() { annotation } else { annotation.label(*label) });
            }
            group = group.element(snippet);
        }
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        vec![group]
    }

    fn in_order_of_first_mark(&self, marks: &[(&Place, &str, AnnotationKind)]) -> Vec<(usize, &Source)> {
        let mut order: Vec<(usize, &Source)> = Vec::new();
        for (place, ..) in marks {
            if let Some(source) = self.sources.get(place.source)
                && !order.iter().any(|(index, _)| *index == place.source)
            {
                order.push((place.source, source));
            }
        }
        order
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Report {}

/// The part of `span` that lies in `text`, widened to whole characters.
fn clamp(text: &str, span: &Range<usize>) -> Range<usize> {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

/// Line and column of a byte offset, both from 1, the column in characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..clamp(text, &(offset..offset)).start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
