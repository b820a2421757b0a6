//! What the command line prints: standard output for results, standard error for messages.
//!
//! * A reader that goes away (`atoll fs cat big | head`) ends the program quietly, as for any Unix tool.
//! * Colours and bars only on a terminal, and never with `NO_COLOR` set to something or `TERM=dumb`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Exit code when the command line is wrong. clap uses the same.
pub const USAGE: u8 = 2;
/// Exit code when nothing runs on the state directory.
pub const NOTHING_RUNNING: u8 = 3;
/// Exit code of a program that a closed pipe ended, as the shell reports it.
const SIGPIPE: i32 = 128 + 13;

/// Why a verb did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The exit code.
    pub code: u8,
    /// What went wrong. Empty: it has been said already.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Failed {
    /// An ordinary failure, exit code 1.
    pub fn new(message: impl Into<String>) -> Failed {
        Failed { code: 1, message: message.into(), help: None }
    }

    /// Wrong usage, exit code 2.
    pub fn usage(message: impl Into<String>) -> Failed {
        Failed { code: USAGE, ..Failed::new(message) }
    }

    /// A failure whose reasons are printed already.
    pub fn told() -> Failed {
        Failed::new("")
    }

    /// Says what to do.
    pub fn help(mut self, help: impl Into<String>) -> Failed {
        self.help = Some(help.into());
        self
    }

    /// Prints it and gives its exit code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            message(&format!("{} {}", paint("error:", Colour::Red, stderr_colours()), self.message));
            if let Some(help) = &self.help {
                message(&format!("{} {help}", paint(" help:", Colour::Cyan, stderr_colours())));
            }
        }
        ExitCode::from(self.code)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(SIGPIPE);
        }
        Failed::new(error.to_string())
    }
}

/// An error of the operating system in its words, without its number, which helps nobody here.
pub fn reason(error: &io::Error) -> String {
    let words = error.to_string();
    words.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Writes to standard output. A reader that went away ends the program.
pub fn write(bytes: &[u8]) -> Result<(), Failed> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| {
        let failed = Failed::from(error);
        Failed { message: format!("cannot write to standard output: {}", failed.message), ..failed }
    })
}

/// Writes a line to standard output.
pub fn line(text: &str) -> Result<(), Failed> {
    write(format!("{text}\n").as_bytes())
}

/// Writes a value as JSON to standard output, for programs and readable for people.
pub fn json(value: &impl serde::Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failed::new(error.to_string()))?;
    line(&text)
}

/// Writes a line to standard error. Nobody is told if that is closed.
pub fn message(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The few colours that are used.
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    Red,
    Green,
    Yellow,
    Cyan,
    Bold,
}

/// `text` in a colour, if `colours`.
pub fn paint(text: &str, colour: Colour, colours: bool) -> String {
    if !colours {
        return text.to_string();
    }
    let code = match colour {
        Colour::Red => "1;31",
        Colour::Green => "32",
        Colour::Yellow => "33",
        Colour::Cyan => "36",
        Colour::Bold => "1",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Whether standard output takes colours.
pub fn stdout_colours() -> bool {
    io::stdout().is_terminal() && colours_wanted()
}

/// Whether standard error takes colours.
pub fn stderr_colours() -> bool {
    io::stderr().is_terminal() && colours_wanted()
}

fn colours_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// A number of bytes for people: three digits and a binary unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A duration for people: three digits and a unit.
pub fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0..=999 => return format!("{nanoseconds} ns"),
        1_000..=999_499 => (value / 1e3, "us"),
        999_500..=999_499_999 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

/// A time since 1970 as UTC, `2026-11-22 11:30:05`.
pub fn time(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's days-to-civil algorithm, for days since 1970-01-01, which are never negative here.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Which side a column's cells stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows whose columns line up, two spaces between them.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        Table { columns: columns.iter().map(|(name, align)| ((*name).to_string(), *align)).collect(), rows: Vec::new() }
    }

    /// Adds a row; a missing cell is empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, the head in bold if `colours`. Cells may not contain escape sequences.
    pub fn render(&self, colours: bool) -> String {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| name.to_uppercase()).collect();
        let width = |index: usize| {
            let cells = self.rows.iter().chain(std::iter::once(&head)).filter_map(|row| row.get(index));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let render = |row: &Vec<String>| {
            let mut line = String::new();
            for (index, ((_, align), width)) in self.columns.iter().zip(&widths).enumerate() {
                let cell = row.get(index).map_or("", String::as_str);
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                line.push_str(if index > 0 { "  " } else { "" });
                match align {
                    Align::Left => line.extend([cell, &padding]),
                    Align::Right => line.extend([&padding, cell]),
                }
            }
            line.trim_end().to_string()
        };
        let mut text = paint(&render(&head), Colour::Bold, colours);
        text.push('\n');
        for row in &self.rows {
            text.push_str(&render(row));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let shown = [0, 999, 1000, 1024, 10_240, 1 << 20, (1 << 30) - 1, 4 << 30, u64::MAX].map(size);
        assert_eq!(
            shown,
            ["0 B", "999 B", "0.98 KiB", "1.00 KiB", "10.0 KiB", "1.00 MiB", "1.00 GiB", "4.00 GiB", "16384 PiB"]
        );
    }

    #[test]
    fn durations_have_three_digits() {
        let shown = [0, 999, 1000, 12_345, 999_499, 999_500, 2_500_000_000].map(duration);
        assert_eq!(shown, ["0 ns", "999 ns", "1.00 us", "12.3 us", "999 us", "1.00 ms", "2.50 s"]);
    }

    #[test]
    fn times_follow_the_calendar() {
        let shown =
            [0, 951_782_400, 1_709_164_799, 1_795_347_005, 4_102_444_800].map(|second| time(second * 1_000_000_000));
        assert_eq!(
            shown,
            [
                "1970-01-01 00:00:00",
                "2000-02-29 00:00:00",
                "2024-02-28 23:59:59",
                "2026-11-22 11:30:05",
                "2100-01-01 00:00:00"
            ]
        );
    }

    #[test]
    fn table_columns_line_up() {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right), ("note", Align::Left)]);
        table.row(vec!["é".into(), "1".into(), "x".into()]);
        table.row(vec!["longer".into(), "10000".into()]);
        assert_eq!(table.render(false), "NAME     SIZE  NOTE\né           1  x\nlonger  10000\n");
    }
}
