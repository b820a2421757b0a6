//! The comparison as SVG: medians of one call at a time, and calls a second with 64 outstanding, on logarithmic axes.

use crate::measure::{DEPTH, Row};

const LINE: f64 = 22.0;
const LEFT: f64 = 230.0;
const WIDTH: f64 = 420.0;

pub fn svg(rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = 30.0;
    for (depth, title) in [
        (1, "microseconds for one call, median (shorter is better)"),
        (DEPTH, "calls a second, 64 outstanding (longer is better)"),
    ] {
        let value = |row: &Row| if depth == 1 { row.p50_ns as f64 / 1000.0 } else { row.calls_per_s };
        let mut of_depth: Vec<&Row> = rows.iter().filter(|row| row.depth == depth).collect();
        of_depth.sort_by_key(|row| row.p50_ns);
        let (low, high) =
            of_depth.iter().fold((f64::MAX, f64::MIN), |(low, high), row| (low.min(value(row)), high.max(value(row))));
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        body += &format!("<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{title}</text>\n");
        y += LINE;
        for row in of_depth {
            let width = WIDTH * (value(row).log10() - low) / (high - low).max(1.0);
            let colour = if row.peer.starts_with("Atoll") { "#1f77b4" } else { "#b0b0b0" };
            let number = if depth == 1 { format!("{:.2}", value(row)) } else { format!("{:.0}", value(row)) };
            body += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}, {}</text>\n\
                 <rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>\n\
                 <text x=\"{}\" y=\"{}\">{number}</text>\n",
                LEFT - 8.0,
                y + 11.0,
                row.peer.replace('&', "&amp;"),
                row.wait,
                y,
                LEFT + width + 6.0,
                y + 11.0,
            );
            y += LINE;
        }
        y += LINE;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{y}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}
