//! The comparison as SVG: the median of each row with one call outstanding beside its floor, on a logarithmic scale.

use std::fmt::Write;

use super::{Comparison, PlaceRow};
use crate::svg::begin;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 60.0;
const LINE: f64 = 20.0;
/// What the axis shows, nanoseconds.
const LEAST: f64 = 1.0;
const MOST: f64 = 1_000_000.0;

/// Draws the rows with one call outstanding.
pub fn svg(comparison: &Comparison) -> String {
    let rows: Vec<&PlaceRow> = comparison.rows.iter().filter(|row| row.depth == 1).collect();
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = draw(&mut text, &rows);
    text
}

fn x(nanoseconds: f64) -> f64 {
    let part = (nanoseconds.clamp(LEAST, MOST) / LEAST).log10() / (MOST / LEAST).log10();
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

fn draw(text: &mut String, rows: &[&PlaceRow]) -> std::fmt::Result {
    let foot = TOP + LINE * rows.len() as f64;
    let height = foot + 50.0;
    let title = "A call by where its server is: median, and the raw floor of the same run (line)";
    begin(text, (WIDTH, height), 12, title)?;
    let mut tick = LEAST;
    for label in ["1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms"] {
        let at = x(tick);
        writeln!(text, r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{foot}" stroke="#ddd"/>"##)?;
        writeln!(text, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, foot + 18.0)?;
        tick *= 10.0;
    }
    for (number, row) in rows.iter().enumerate() {
        let top = TOP + LINE * number as f64;
        let colour = match row.place {
            super::Placement::InProcess => "#0a7d33",
            super::Placement::Shm => "#2c6fbb",
            super::Placement::Socket => "#c0392b",
            super::Placement::SocketEncrypted => "#8e44ad",
        };
        let wait = format!("{:?}", row.wait).to_lowercase();
        let name = match row.pin {
            super::Pin::None => format!("{}, {wait}, {} B", row.place.label(), row.size),
            pin => format!("{}, {wait}, {}, {} B", row.place.label(), pin.name(), row.size),
        };
        writeln!(text, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#, LEFT - 8.0, top + 14.0)?;
        let (end, floor) = (x(row.p50_ns as f64), x(row.floor_p50_ns as f64));
        writeln!(
            text,
            r#"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="12" fill="{colour}" fill-opacity="0.6"/>"#,
            top + 4.0,
            end - LEFT
        )?;
        writeln!(
            text,
            r#"<line x1="{floor:.1}" y1="{:.1}" x2="{floor:.1}" y2="{:.1}" stroke="black" stroke-width="2"/>"#,
            top + 2.0,
            top + 18.0
        )?;
        writeln!(
            text,
            r#"<text x="{:.1}" y="{:.1}">{:.2} µs = {:.2} ×</text>"#,
            end.max(floor) + 6.0,
            top + 14.0,
            row.p50_ns as f64 / 1000.0,
            row.ratio()
        )?;
    }
    writeln!(text, "</svg>")
}
