//! What every plot begins with.

use std::fmt::Write;

/// Begins a plot of so many pixels: its letters, a white ground, and its title.
///
/// # Errors
/// None: writing into a string does not fail.
pub fn begin(text: &mut String, (width, height): (f64, f64), font_size: u32, title: &str) -> std::fmt::Result {
    writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="{font_size}">"#
    )?;
    writeln!(text, r#"<rect width="{width}" height="{height}" fill="white"/>"#)?;
    writeln!(text, r#"<text x="20" y="25" font-size="15">{title}</text>"#)
}
