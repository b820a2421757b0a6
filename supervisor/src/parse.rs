//! From text to a manifest's shape: every field known, every value of the right type, every part with its place.
//!
//! * What the values mean, and whether names refer to anything, is for `check`.
//! * `--set` arguments are sources of their own, so their errors point into the argument.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::manifest::{EMBEDDED, Origin};
use crate::report::{Place, Problem, Report, Source};
use crate::value::nearest;

/// A manifest is a page or two; anything larger is not a manifest.
const LARGEST_MANIFEST_BYTES: u64 = 1 << 20;

/// A piece of text and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub text: String,
    pub place: Place,
}

/// A configuration value before its meaning is known.
#[derive(Clone, Debug)]
pub(crate) enum Literal {
    Text(String),
    Integer(Option<u64>),
    Flag(bool),
    /// Another TOML type, by name.
    Other(&'static str),
}

#[derive(Clone, Debug)]
pub(crate) struct RawValue {
    pub literal: Literal,
    pub place: Place,
    /// From `--set`, where everything is text.
    pub set: bool,
}

/// `[interface."example.counter/1"]`.
#[derive(Debug)]
pub(crate) struct RawInterface {
    pub name: Word,
    pub rights: Vec<(Word, RawValue)>,
}

#[derive(Debug)]
pub(crate) struct RawUse {
    pub name: Word,
    pub place: Place,
    pub from: Option<Word>,
    pub rights: Option<Vec<Word>>,
    pub path: Option<Word>,
    pub tcp: Option<Word>,
}

#[derive(Debug)]
pub(crate) struct RawComponent {
    pub name: Word,
    pub run: Option<Word>,
    pub uses: Vec<RawUse>,
    pub provides: Vec<(Word, Word)>,
    pub config: Vec<(Word, RawValue)>,
    pub restart: Option<Word>,
    pub group: Option<Word>,
    pub hung_after: Option<RawValue>,
    /// `refuse_after_ms`.
    pub refuse_after: Option<RawValue>,
    pub reactors: Option<RawValue>,
    pub place: Option<Word>,
}

/// A parsed manifest; `report` already holds what was wrong with its shape.
#[derive(Debug)]
pub(crate) struct Raw {
    pub report: Report,
    pub system: Option<Word>,
    /// Nodes whose operators are operators of all of it.
    pub operators: Vec<Word>,
    pub interfaces: Vec<RawInterface>,
    pub components: Vec<RawComponent>,
    /// Where relative paths of programs begin: the directory of the manifest. `None`: it is in no file.
    pub base: Option<PathBuf>,
}

/// Reads and parses the manifest and the `--set` arguments.
///
/// # Errors
/// A file that cannot be read, or text that is not TOML: nothing else could be checked.
pub(crate) fn parse(origin: Origin<'_>, sets: &[String]) -> Result<Raw, Report> {
    let source = read(origin)?;
    let base = base(origin);
    let text = source.text.clone();
    let mut report = Report { sources: vec![source], problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        // One key given twice makes every key below it a duplicate too: say it once.
        let duplicate = errors.iter().position(is_duplicate);
        let told = |(index, error): &(usize, &toml::de::Error)| !is_duplicate(error) || Some(*index) == duplicate;
        let errors = errors.iter().enumerate().filter(told);
        report.problems = errors.map(|(_, error)| syntax_problem(error, &text)).collect();
        report.sort();
        return Err(report);
    }
    let (operators, interfaces, components) = (Vec::new(), Vec::new(), Vec::new());
    let mut parser = Parser { raw: Raw { report, system: None, operators, interfaces, components, base } };
    parser.document(&document);
    for set in sets {
        parser.set(set);
    }
    Ok(parser.raw)
}

fn read(origin: Origin<'_>) -> Result<Source, Report> {
    let path = match origin {
        Origin::Embedded => {
            return Ok(Source { name: "systems/web.toml (built in)".into(), text: EMBEDDED.into() });
        }
        Origin::Text { name, text } => {
            return Ok(Source { name: name.into(), text: text.into() });
        }
        Origin::Path(path) => path,
    };
    let name = path.display().to_string();
    let cannot = |reason: String| Report::general(format!("cannot read the manifest {name}: {reason}"), None);
    let length = std::fs::metadata(path).map_err(|error| cannot(reason(&error)))?.len();
    if length > LARGEST_MANIFEST_BYTES {
        return Err(cannot("it is larger than 1 MiB".into()));
    }
    let bytes = std::fs::read(path).map_err(|error| cannot(reason(&error)))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { name, text }),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(cannot(format!("line {line} is not UTF-8 text")))
        }
    }
}

/// Where the relative paths of a manifest begin: its directory; of a copy that a node keeps, that of the original, which stands beside it.
/// `None`: it is in no file.
pub(crate) fn base(origin: Origin<'_>) -> Option<PathBuf> {
    let Origin::Path(path) = origin else { return None };
    let is_kept = path.file_name().is_some_and(|name| name == KEPT);
    let kept = is_kept.then(|| std::fs::read(path.with_extension(BASE)).ok()).flatten();
    match kept {
        Some(base) => Some(PathBuf::from(OsString::from_vec(base))),
        None => Some(std::path::absolute(path).ok()?.parent()?.to_path_buf()),
    }
}

/// What a node calls its copy, and the extension of the file beside it: `manifest.base`.
pub(crate) const KEPT: &str = "manifest";
pub(crate) const BASE: &str = "base";

/// An I/O error without the number that only programmers read.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "permission denied".into(),
        std::io::ErrorKind::IsADirectory => "it is a directory".into(),
        _ => error.to_string(),
    }
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message() == "duplicate key"
}

fn syntax_problem(error: &toml::de::Error, text: &str) -> Problem {
    let Some(span) = error.span() else {
        return Problem::general(format!("this is not TOML: {}", error.message()));
    };
    if is_duplicate(error) {
        let key = text.get(span.clone()).unwrap_or_default();
        let title = format!("`{}` is defined twice", key.escape_debug());
        return Problem::at(&place(span), title, "the second time");
    }
    let message = error.message().replace('\n', "; ");
    Problem::at(&place(span), "this is not TOML", message)
}

struct Parser {
    raw: Raw,
}

type Entry<'t> = (Word, &'t Spanned<DeValue<'t>>);

impl Parser {
    fn document(&mut self, document: &Spanned<DeTable<'_>>) {
        let entries = self.fields(document.get_ref(), &["atoll", "system", "interface", "component"], "a manifest");
        let mut version_seen = false;
        for (key, value) in entries {
            match key.text.as_str() {
                "atoll" => {
                    version_seen = true;
                    self.version(value);
                }
                "system" => self.system(value),
                "interface" => self.interfaces(value),
                _ => self.components(value),
            }
        }
        if !version_seen {
            self.problem(
                Problem::at(&place(0..0), "the manifest does not say its version", "")
                    .help("begin it with `atoll = 1`"),
            );
        }
        if self.raw.components.is_empty() && self.raw.report.problems.is_empty() {
            self.problem(Problem::general("the manifest has no component").help("add a `[component.NAME]`"));
        }
    }

    fn version(&mut self, value: &Spanned<DeValue<'_>>) {
        let number = value.get_ref().as_integer().and_then(|i| i64::from_str_radix(i.as_str(), i.radix()).ok());
        if number != Some(1) {
            self.problem(
                Problem::at(&place(value.span()), "unknown manifest version", "this build reads version 1")
                    .help("write `atoll = 1`, or use the `atoll` that this manifest was written for"),
            );
        }
    }

    fn system(&mut self, value: &Spanned<DeValue<'_>>) {
        let Some(table) = self.table(value, "`system`") else {
            return;
        };
        for (key, value) in self.fields(table, &["name", "operators"], "`[system]`") {
            if key.text == "operators" {
                self.raw.operators = self.words(value, "`operators`").unwrap_or_default();
            } else if let Some(word) = self.text(value, "the system's name") {
                self.name(&word, "system");
                self.raw.system = Some(word);
            }
        }
    }

    fn interfaces(&mut self, value: &Spanned<DeValue<'_>>) {
        let Some(table) = self.table(value, "`interface`") else {
            return;
        };
        for (name, value) in entries(table) {
            let what = format!("interface `{}`", name.text.escape_debug());
            let Some(table) = self.table(value, &what) else {
                continue;
            };
            let mut rights = Vec::new();
            for (_, value) in self.fields(table, &["rights"], &what) {
                if let Some(table) = self.table(value, "`rights`") {
                    rights = entries(table).into_iter().map(|(key, value)| (key, raw_value(value))).collect();
                }
            }
            self.raw.interfaces.push(RawInterface { name, rights });
        }
    }

    fn components(&mut self, value: &Spanned<DeValue<'_>>) {
        let Some(table) = self.table(value, "`component`") else {
            return;
        };
        for (name, value) in entries(table) {
            self.name(&name, "component");
            let Some(table) = self.table(value, &format!("component `{}`", name.text)) else {
                continue;
            };
            let component = self.component(name, table);
            self.raw.components.push(component);
        }
    }

    fn component(&mut self, name: Word, table: &DeTable<'_>) -> RawComponent {
        let mut component = RawComponent {
            name,
            run: None,
            uses: Vec::new(),
            provides: Vec::new(),
            config: Vec::new(),
            restart: None,
            group: None,
            hung_after: None,
            refuse_after: None,
            reactors: None,
            place: None,
        };
        const KNOWN: &[&str] = &[
            "run",
            "uses",
            "provides",
            "config",
            "restart",
            "group",
            "hung_after_seconds",
            "refuse_after_ms",
            "reactors",
            "place",
        ];
        let what = format!("component `{}`", component.name.text);
        for (key, value) in self.fields(table, KNOWN, &what) {
            match key.text.as_str() {
                "run" => component.run = self.text(value, "`run`"),
                "uses" => component.uses = self.uses(value),
                "provides" => component.provides = self.provides(value),
                "restart" => component.restart = self.text(value, "`restart`"),
                "group" => component.group = self.group(value),
                "hung_after_seconds" => component.hung_after = Some(raw_value(value)),
                "refuse_after_ms" => component.refuse_after = Some(raw_value(value)),
                "reactors" => component.reactors = Some(raw_value(value)),
                "place" => component.place = self.text(value, "`place`"),
                _ => component.config = self.config(value),
            }
        }
        component
    }

    fn group(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Word> {
        let group = self.text(value, "`group`")?;
        self.name(&group, "group");
        // A bad name is reported once.
        crate::value::name(&group.text).is_ok().then_some(group)
    }

    fn uses(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<RawUse> {
        let Some(table) = self.table(value, "`uses`") else {
            return Vec::new();
        };
        let mut uses = Vec::new();
        for (name, value) in entries(table) {
            self.name(&name, "use");
            let what = format!("use `{}`", name.text);
            let Some(table) = self.table(value, &what) else {
                continue;
            };
            let place = name.place.clone();
            let mut used = RawUse { name, place, from: None, rights: None, path: None, tcp: None };
            for (key, value) in self.fields(table, &["from", "rights", "path", "tcp"], &what) {
                match key.text.as_str() {
                    "from" => used.from = self.text(value, "`from`"),
                    "rights" => used.rights = self.words(value, "`rights`"),
                    "path" => used.path = self.text(value, "`path`"),
                    _ => used.tcp = self.text(value, "`tcp`"),
                }
            }
            uses.push(used);
        }
        uses
    }

    fn provides(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<(Word, Word)> {
        let Some(table) = self.table(value, "`provides`") else {
            return Vec::new();
        };
        let mut provides = Vec::new();
        for (name, value) in entries(table) {
            self.name(&name, "endpoint");
            if let Some(interface) = self.text(value, "an endpoint's interface") {
                provides.push((name, interface));
            }
        }
        provides
    }

    fn config(&mut self, value: &Spanned<DeValue<'_>>) -> Vec<(Word, RawValue)> {
        let Some(table) = self.table(value, "`config`") else {
            return Vec::new();
        };
        entries(table).into_iter().map(|(key, value)| (key, raw_value(value))).collect()
    }

    /// Applies one `--set component.key=VALUE`.
    fn set(&mut self, argument: &str) {
        const PREFIX: &str = "--set ";
        let source = self.raw.report.sources.len();
        self.raw.report.sources.push(Source { name: "command line".into(), text: format!("{PREFIX}{argument}") });
        let at = |span: Range<usize>| Place { source, span: span.start + PREFIX.len()..span.end + PREFIX.len() };
        let target = argument.split_once('=').and_then(|(target, value)| {
            let (component, key) = target.split_once('.')?;
            (!component.is_empty() && !key.is_empty()).then_some((component, key, value))
        });
        let Some((component, key, value)) = target else {
            let whole = at(0..argument.len());
            self.problem(
                Problem::at(&whole, "`--set` does not have the form component.key=VALUE", "")
                    .help("for example: --set httpd.listen=127.0.0.1:0"),
            );
            return;
        };
        let component_place = at(0..component.len());
        let key_place = at(component.len() + 1..component.len() + 1 + key.len());
        let value_place = at(argument.len() - value.len()..argument.len());
        let Some(found) = self.raw.components.iter_mut().find(|found| found.name.text == component) else {
            let names: Vec<&str> = self.raw.components.iter().map(|found| found.name.text.as_str()).collect();
            let mut problem =
                Problem::at(&component_place, format!("the manifest has no component `{component}`"), "not found");
            if !names.is_empty() {
                problem = problem.help(format!("the components are {}", list(&names)));
            }
            self.problem(problem);
            return;
        };
        let value = RawValue { literal: Literal::Text(value.into()), place: value_place, set: true };
        found.config.retain(|(old, _)| old.text != key);
        found.config.push((Word { text: key.into(), place: key_place }, value));
    }

    /// The entries of `table` whose keys are in `known`; the others are reported.
    fn fields<'t>(&mut self, table: &'t DeTable<'t>, known: &[&str], what: &str) -> Vec<Entry<'t>> {
        let mut good = Vec::new();
        for (key, value) in entries(table) {
            if known.contains(&key.text.as_str()) {
                good.push((key, value));
                continue;
            }
            let problem = Problem::at(&key.place, format!("unknown field `{}` in {what}", key.text), "not known here");
            self.problem(problem.help(match nearest(&key.text, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the fields are {}", list(known)),
            }));
        }
        good
    }

    fn name(&mut self, word: &Word, what: &str) {
        if let Err(reason) = crate::value::name(&word.text) {
            self.problem(
                Problem::at(&word.place, format!("bad {what} name `{}`", word.text.escape_debug()), "").help(reason),
            );
        }
    }

    fn table<'t>(&mut self, value: &'t Spanned<DeValue<'t>>, what: &str) -> Option<&'t DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, what, "a table");
        }
        table
    }

    fn text(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Option<Word> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, what, "text in quotes");
            return None;
        };
        Some(Word { text: text.into(), place: place(value.span()) })
    }

    fn words(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Option<Vec<Word>> {
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, what, "a list of words");
            return None;
        };
        Some(array.iter().filter_map(|item| self.text(item, &format!("each of {what}"))).collect())
    }

    fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, what: &str, expected: &str) {
        let found = type_name(value.get_ref());
        self.problem(Problem::at(
            &place(value.span()),
            format!("{what} must be {expected}"),
            format!("this is {found}"),
        ));
    }

    fn problem(&mut self, problem: Problem) {
        self.raw.report.problems.push(problem);
    }
}

/// The entries of a table in the order of the text.
fn entries<'t>(table: &'t DeTable<'t>) -> Vec<Entry<'t>> {
    let mut entries: Vec<Entry<'t>> = table
        .iter()
        .map(|(key, value)| (Word { text: key.get_ref().to_string(), place: place(key.span()) }, value))
        .collect();
    entries.sort_by_key(|(key, _)| key.place.span.start);
    entries
}

fn raw_value(value: &Spanned<DeValue<'_>>) -> RawValue {
    let literal = match value.get_ref() {
        DeValue::String(text) => Literal::Text(text.to_string()),
        DeValue::Integer(i) => Literal::Integer(u64::from_str_radix(i.as_str(), i.radix()).ok()),
        DeValue::Boolean(flag) => Literal::Flag(*flag),
        other => Literal::Other(type_name(other)),
    };
    RawValue { literal, place: place(value.span()), set: false }
}

fn place(span: Range<usize>) -> Place {
    Place { source: 0, span }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `a`, `b` and `c`.
pub(crate) fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
