//! A report: one HTML file that needs nothing else.

mod bars;
pub mod numbers;
mod plot;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use bars::Bars;
pub use plot::{Mark, Plot, Series};

const STYLE: &str = include_str!("report/style.css");

/// A page, built from top to bottom.
#[derive(Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with a heading.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: format!("<h1>{}</h1>\n", escape(title)) }
    }

    /// Says at once whether it went well.
    pub fn verdict(&mut self, good: bool, text: &str) -> &mut Self {
        let class = if good { "good" } else { "bad" };
        self.add(&format!("<p class=\"verdict {class}\">{}</p>", escape(text)))
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.add(&format!("<h2>{}</h2>", escape(text)))
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.add(&format!("<p>{}</p>", escape(text)))
    }

    /// Text as it is, such as the first differences found.
    pub fn verbatim(&mut self, text: &str) -> &mut Self {
        self.add(&format!("<pre>{}</pre>", escape(text)))
    }

    /// A table. Columns of words are aligned left, columns of numbers right.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) -> &mut Self {
        let is_word = |cell: &String| cell.starts_with(char::is_alphabetic);
        let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            cells.enumerate().fold(String::new(), |line, (column, cell)| {
                let words = rows.iter().any(|row| row.get(column).is_some_and(is_word));
                let class = if words { " class=\"word\"" } else { "" };
                format!("{line}<{tag}{class}>{}</{tag}>", escape(cell))
            })
        };
        let mut table = "<div class=\"wide\"><table>\n".to_owned();
        if !head.is_empty() {
            let _ = writeln!(table, "<tr>{}</tr>", line("th", &mut head.iter().copied()));
        }
        for row in rows {
            let _ = writeln!(table, "<tr>{}</tr>", line("td", &mut row.iter().map(String::as_str)));
        }
        self.add(&(table + "</table></div>"))
    }

    /// Text that is shown when its title is clicked.
    pub fn fold(&mut self, title: &str, text: &str) -> &mut Self {
        self.add(&format!(
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escape(title),
            escape(text)
        ))
    }

    /// A plot with its title and legend.
    pub fn plot(&mut self, plot: &Plot) -> Result<&mut Self> {
        let unit = if plot.unit == "s" { "" } else { &plot.unit };
        let names: Vec<&str> = plot.series.iter().map(|series| series.name.as_str()).collect();
        Ok(self.figure(&plot.title, unit, &names, &plot.svg()?))
    }

    /// A distribution with its title and legend.
    pub fn bars(&mut self, bars: &Bars) -> Result<&mut Self> {
        let names: Vec<&str> = bars.series.iter().map(|(name, _)| name.as_str()).collect();
        Ok(self.figure(&bars.title, &bars.unit, &names, &bars.svg()?))
    }

    fn figure(&mut self, title: &str, unit: &str, names: &[&str], svg: &str) -> &mut Self {
        let comma = if unit.is_empty() { "" } else { ", " };
        let mut figure =
            format!("<figure><figcaption><div><b>{}</b>{comma}{}</div>", escape(title), escape(unit));
        for (number, name) in names.iter().enumerate() {
            let color = Plot::color(number);
            let _ = write!(figure, " <span><i style=\"background:{color}\"></i>{}</span>", escape(name));
        }
        let _ = write!(figure, "</figcaption>\n<div class=\"wide\">{svg}</div></figure>");
        self.add(&figure)
    }

    /// Writes it to `target/report` under this name. Returns its path.
    pub fn write(&self, name: &str) -> Result<PathBuf> {
        self.write_to(&crate::stack::project().join("target/report"), name)
    }

    fn write_to(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(name);
        let text = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
            escape(&self.title),
            self.body
        );
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn add(&mut self, html: &str) -> &mut Self {
        self.body += html;
        self.body.push('\n');
        self
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_escapes_what_it_is_given_and_asks_for_nothing_from_elsewhere() {
        let mut page = Page::new("A & B");
        page.verdict(true, "<script>").table(&["x"], &[vec!["<b>".to_owned()]]);
        let folder = tempfile::tempdir().unwrap();
        let path = page.write_to(folder.path(), "index.html").unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("<title>A &amp; B</title>") && text.contains("<td>&lt;b&gt;</td>"));
        assert!(!text.contains("<script") && !text.contains("href") && !text.contains("src="));
    }
}
