//! All steps together, as lines, as one HTML page, and as Markdown.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;

use super::finding::Finding;
use crate::bed::Stack;
use crate::report::Page;
use crate::report::numbers::duration;

/// A step that was taken.
pub struct Done {
    pub number: usize,
    pub title: &'static str,
    pub expected: &'static str,
    pub seconds: f64,
    pub finding: Finding,
}

impl Done {
    fn verdict(&self) -> &'static str {
        if self.finding.is_good() { "GOOD" } else { "BAD" }
    }

    /// For a terminal.
    pub fn print(&self) {
        for (name, value) in &self.finding.measured {
            println!("        {name}: {value}");
        }
        for (what, _) in self.finding.checks.iter().filter(|(_, good)| !good) {
            println!("        DOES NOT HOLD: {what}");
        }
        if !self.finding.is_good() {
            for (_, text) in self.finding.evidence.iter().filter(|(title, _)| title == "error") {
                println!("{text}");
            }
        }
        println!("        {} after {}", self.verdict(), duration(self.seconds));
    }
}

/// All steps.
pub struct Outcome {
    parts: String,
    pub steps: Vec<Done>,
}

impl Outcome {
    /// Nothing yet.
    pub fn new(stack: &Stack) -> Self {
        let version = |package| stack.package_version(package).unwrap_or_else(|_| "not our own".to_owned());
        let parts = format!(
            "Mosquitto {}, PostgreSQL {}, TimescaleDB {}, {} cores for all parts",
            version("mosquitto"),
            version("postgresql-17"),
            version("postgresql-17-timescaledb"),
            std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
        );
        Self { parts, steps: Vec::new() }
    }

    /// Step 12: that all were run by one command.
    pub fn conclude(&mut self) {
        let mut finding = Finding::default();
        let good = self.steps.iter().filter(|step| step.finding.is_good()).count();
        finding.measured("steps", format!("{good} of {} are good", self.steps.len()));
        finding.require("steps 1 to 11 ran and are good", good == self.steps.len() && good == 11);
        let seconds = self.steps.iter().map(|step| step.seconds).sum();
        let done = Done {
            number: 12,
            title: "One command, for people and for CI",
            expected: "all steps run unattended; the exit status says whether all are good",
            seconds,
            finding,
        };
        println!("12/12 {}", done.title);
        done.print();
        self.steps.push(done);
    }

    /// Whether all that ran is good.
    pub fn is_good(&self) -> bool {
        self.steps.iter().all(|step| step.finding.is_good())
    }

    /// In one line.
    pub fn verdict(&self) -> String {
        let bad: Vec<String> = self
            .steps
            .iter()
            .filter(|step| !step.finding.is_good())
            .map(|step| step.number.to_string())
            .collect();
        if bad.is_empty() {
            format!("GOOD: {} steps of {}", self.steps.len(), self.steps.len())
        } else {
            format!("BAD: steps {}", bad.join(", "))
        }
    }

    /// Writes target/report/validation.html and .md; their paths.
    pub fn write(&self) -> Result<[PathBuf; 2]> {
        let html = self.page()?.write("validation.html")?;
        let markdown = html.with_extension("md");
        std::fs::write(&markdown, self.markdown()?)?;
        Ok([html, markdown])
    }

    fn page(&self) -> Result<Page> {
        let mut page = Page::new("Penstock validation");
        page.verdict(self.is_good(), &self.verdict()).text(&format!("{}.", self.parts));
        let rows: Vec<Vec<String>> = self
            .steps
            .iter()
            .map(|step| vec![step.title.to_owned(), step.verdict().to_owned(), duration(step.seconds)])
            .collect();
        page.table(&["step", "verdict", "took"], &rows);
        for step in &self.steps {
            let finding = &step.finding;
            page.heading(&format!("{}. {}", step.number, step.title));
            page.verdict(finding.is_good(), step.verdict()).text(&format!("Expected: {}.", step.expected));
            let rows = |pairs: &[(String, String)]| -> Vec<Vec<String>> {
                pairs.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect()
            };
            if !finding.measured.is_empty() {
                page.table(&["measured", ""], &rows(&finding.measured));
            }
            let checks: Vec<(String, String)> =
                finding.checks.iter().map(|(what, good)| (what.clone(), said(*good).to_owned())).collect();
            page.table(&["checked", ""], &rows(&checks));
            for plot in &finding.plots {
                page.plot(plot)?;
            }
            for bars in &finding.bars {
                page.bars(bars)?;
            }
            for (title, text) in &finding.evidence {
                page.fold(title, text);
            }
        }
        Ok(page)
    }

    fn markdown(&self) -> Result<String, std::fmt::Error> {
        let mut text = format!("# Penstock validation\n\n**{}**. {}.\n", self.verdict(), self.parts);
        for step in &self.steps {
            writeln!(
                text,
                "\n## {}. {}: {}\n\nExpected: {}.\n",
                step.number,
                step.title,
                step.verdict(),
                step.expected
            )?;
            for (name, value) in &step.finding.measured {
                writeln!(text, "- {name}: {value}")?;
            }
            for (what, good) in &step.finding.checks {
                writeln!(text, "- [{}] {what}", if *good { 'x' } else { ' ' })?;
            }
            for (title, evidence) in &step.finding.evidence {
                writeln!(text, "\n{title}\n\n```\n{evidence}\n```")?;
            }
        }
        Ok(text)
    }
}

fn said(good: bool) -> &'static str {
    if good { "holds" } else { "DOES NOT HOLD" }
}
