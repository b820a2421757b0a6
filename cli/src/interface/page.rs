//! An interface for people, on a page.

use std::time::Duration;

use kernel_ipc::described::{Definition, Field, Interface, Operation, Variant};
use kernel_ipc::interface::Retry;

use crate::output::{Colour, paint};

/// Columns of a line of text.
const WIDTH: usize = 100;

/// The page, with a newline at its end.
pub fn page(interface: &Interface, colours: bool) -> String {
    let mut page = Page { text: String::new(), colours };
    page.line(0, &format!("{}  {}", page.bold(&interface.name), interface.about));

    page.head("object kinds");
    page.rows(2, interface.kinds.iter().map(|kind| [kind.name.clone(), kind.about.clone()]));
    if !interface.rights.is_empty() {
        page.head("rights");
        let row = |right: &kernel_ipc::described::Right| {
            [right.name.clone(), format!("bit {}", right.bit), right.about.clone()]
        };
        page.rows(2, interface.rights.iter().map(row));
    }
    page.head("operations");
    for (at, operation) in interface.operations.iter().enumerate() {
        if at > 0 {
            page.text.push('\n');
        }
        page.operation(operation);
    }
    page.head("types");
    for (name, definition) in &interface.types {
        page.definition(name, definition);
    }
    page.head("errors");
    for (name, variants) in &interface.errors {
        page.line(2, &page.bold(name));
        page.rows(4, variants.iter().map(error));
    }
    page.text
}

struct Page {
    text: String,
    colours: bool,
}

impl Page {
    fn bold(&self, text: &str) -> String {
        paint(text, Colour::Bold, self.colours)
    }

    fn line(&mut self, indent: usize, text: &str) {
        self.text.push_str(&format!("{:indent$}{text}\n", ""));
    }

    fn head(&mut self, text: &str) {
        self.text.push('\n');
        self.line(0, &self.bold(&text.to_uppercase()));
    }

    /// Rows whose columns line up; the last one is text, and wrapped.
    fn rows<const N: usize>(&mut self, indent: usize, rows: impl Iterator<Item = [String; N]>) {
        let rows: Vec<[String; N]> = rows.collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N - 1).map(width).collect();
        let text_at = indent + widths.iter().map(|width| width + 2).sum::<usize>();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            let mut parts = wrap(&row[N - 1], WIDTH.saturating_sub(text_at).max(30)).into_iter();
            line.push_str(&parts.next().unwrap_or_default());
            self.line(indent, line.trim_end());
            parts.for_each(|part| self.line(text_at, &part));
        }
    }

    fn operation(&mut self, operation: &Operation) {
        let arguments: Vec<String> = operation.arguments.iter().map(argument).collect();
        let name = paint(&operation.name, Colour::Cyan, self.colours);
        let line = format!("{:>3}  {name}({}) -> {}", operation.number, arguments.join(", "), operation.result);
        self.line(0, &line);
        wrap(&operation.about, WIDTH - 5).iter().for_each(|part| self.line(5, part));
        let needs = match operation.requires.as_slice() {
            [] => "without rights".into(),
            rights => format!("with {}", rights.join(", ")),
        };
        let retry = match operation.retry {
            Retry::Idempotent => "runs again if its host dies",
            Retry::Cached => "runs at most once",
            Retry::Never => "is never sent again",
        };
        let deadline = match operation.deadline_ns {
            Some(ns) => format!("{:?}", Duration::from_nanos(ns)),
            None => "for ever".into(),
        };
        let target = &operation.target;
        let facts =
            format!("on a {} ({}) {needs}; {retry}; waits {deadline}; {}", target.kind, target.name, operation.error);
        wrap(&facts, WIDTH - 5).iter().for_each(|part| self.line(5, part));
    }

    fn definition(&mut self, name: &str, definition: &Definition) {
        let bounds = match definition {
            Definition::Bytes { min, max, .. } => format!(" ({min} to {max} bytes)"),
            _ => String::new(),
        };
        let text = format!("{}{bounds}  {}", self.bold(name), definition.about());
        self.line(2, text.trim_end());
        match definition {
            Definition::Struct { fields, .. } => {
                let row = |field: &Field| [field.name.clone(), field.ty.to_string(), field.about.clone()];
                self.rows(4, fields.iter().map(row));
            }
            Definition::Enum { variants, .. } => {
                let row =
                    |variant: &Variant| [format!("{:>3}", variant.number), variant.name.clone(), variant.about.clone()];
                self.rows(4, variants.iter().map(row));
            }
            Definition::Bytes { .. } => {}
        }
    }
}

fn argument(field: &Field) -> String {
    format!("{}: {}", field.name, field.ty)
}

/// Number, name with fields, text.
fn error(variant: &Variant) -> [String; 3] {
    let fields: Vec<String> = variant.fields.iter().map(argument).collect();
    let fields = if fields.is_empty() { String::new() } else { format!("({})", fields.join(", ")) };
    [format!("{:>3}", variant.number), format!("{}{fields}", variant.name), variant.about.clone()]
}

/// Lines of at most `width` characters, cut at spaces; a longer word stands alone.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(if line.is_empty() { "" } else { " " });
        line.push_str(word);
    }
    lines.extend(Some(line).filter(|line| !line.is_empty()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_spaces() {
        assert_eq!(wrap("a bb ccc dddd", 4), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrap("longerthanthat a", 4), ["longerthanthat", "a"]);
        assert_eq!(wrap("  ", 4), [""; 0]);
    }

    #[test]
    fn a_page_names_everything_in_the_interface() {
        for known in &protocol::INTERFACES {
            let interface = Interface::of(known.description);
            let page = page(&interface, false);
            assert!(!page.contains('\x1b') && !page.contains(" \n"), "{page}");
            let operations = interface.operations.iter().map(|operation| format!("{}(", operation.name));
            let errors = interface.errors.values().flatten().map(|error| error.name.clone());
            for name in operations.chain(interface.types.keys().cloned()).chain(errors) {
                assert!(page.contains(&name), "{name}\n{page}");
            }
        }
    }
}
