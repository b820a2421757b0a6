//! The two curves as SVG.

use std::fmt::Write;

use crate::report::{Row, Run};
use crate::svg::begin;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// What the horizontal axis shows, in times of the capacity.
const MOST: f64 = 10.5;
/// What the vertical axis shows, in times of the capacity.
const HIGHEST: f64 = 1.1;

/// Draws a run of [`run`](super::run): goodput beside what was offered, both in times of the capacity.
pub fn svg(run: &Run) -> String {
    let capacity = run.rows.iter().find(|row| row.name == "capacity").map_or(1.0, |row| row.per_second.max(1.0));
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = draw(&mut text, run, capacity);
    text
}

fn x(load: f64) -> f64 {
    LEFT + load / MOST * (WIDTH - LEFT - RIGHT)
}

fn y(goodput: f64) -> f64 {
    HEIGHT - BOTTOM - goodput / HIGHEST * (HEIGHT - TOP - BOTTOM)
}

fn draw(text: &mut String, run: &Run, capacity: f64) -> std::fmt::Result {
    let title = format!("Goodput past saturation (capacity {capacity:.0} calls/s)");
    begin(text, (WIDTH, HEIGHT), 13, &title)?;
    for tenth in [0, 2, 4, 6, 8, 10] {
        let level = f64::from(tenth) / 10.0;
        let (from, to, at) = (LEFT, WIDTH - RIGHT, y(level));
        writeln!(text, r##"<line x1="{from}" y1="{at:.1}" x2="{to}" y2="{at:.1}" stroke="#ddd"/>"##)?;
        writeln!(text, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{level}</text>"#, from - 8.0, at + 4.0)?;
    }
    for load in [0.5, 1.0, 2.0, 4.0, 10.0] {
        let (at, foot) = (x(load), y(0.0));
        writeln!(text, r#"<line x1="{at:.1}" y1="{foot:.1}" x2="{at:.1}" y2="{:.1}" stroke="black"/>"#, foot + 5.0)?;
        writeln!(text, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{load}</text>"#, foot + 20.0)?;
    }
    let middle = (x(0.0) + x(MOST)) / 2.0;
    let foot = HEIGHT - 15.0;
    writeln!(text, r#"<text x="{middle:.1}" y="{foot}" text-anchor="middle">offered, times the capacity</text>"#)?;
    let middle = (y(0.0) + y(HIGHEST)) / 2.0;
    writeln!(
        text,
        r#"<text x="20" y="{middle:.1}" text-anchor="middle" transform="rotate(-90 20 {middle:.1})">answered in time, times the capacity</text>"#
    )?;
    for (name, meaning, colour) in [("on, ", "refuses early", "#0a7d33"), ("off, ", "refuses nothing", "#c0392b")] {
        let rows: Vec<&Row> = run.rows.iter().filter(|row| row.name.starts_with(name)).collect();
        let place = |row: &Row| (x(row.offered_per_second.unwrap_or(0.0) / capacity), y(row.per_second / capacity));
        write!(text, r#"<polyline fill="none" stroke="{colour}" stroke-width="2" points=""#)?;
        for (across, up) in rows.iter().map(|row| place(row)) {
            write!(text, "{across:.1},{up:.1} ")?;
        }
        writeln!(text, r#""/>"#)?;
        for (across, up) in rows.iter().map(|row| place(row)) {
            writeln!(text, r#"<circle cx="{across:.1}" cy="{up:.1}" r="3.5" fill="{colour}"/>"#)?;
        }
        if let Some((across, up)) = rows.last().map(|row| place(row)) {
            let up = up - 10.0;
            writeln!(text, r#"<text x="{across:.1}" y="{up:.1}" text-anchor="end" fill="{colour}">{meaning}</text>"#)?;
        }
    }
    writeln!(text, "</svg>")
}
