//! A plot of values over time, as SVG.

use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::numbers::{compact, duration, step};

const SIZE: (u32, u32) = (960, 280);
const MARGIN: u32 = 8;
const LEFT: u32 = 64;
const BOTTOM: u32 = 34;
/// A row of marks' labels above the plot.
const LABEL_ROW: u32 = 17;
/// The width of a label's letter, for keeping labels apart.
const LETTER: f64 = 6.6;
const TEXT: u32 = 15;
/// The page's style sheet replaces this colour by one that fits its background.
pub const GRID: RGBColor = RGBColor(0xdd, 0xe1, 0xe6);
/// The same of this one.
pub const INK: RGBColor = RGBColor(0x33, 0x3b, 0x45);
const FAULT: RGBColor = RGBColor(0xd9, 0x4a, 0x4a);
/// Colours that can be told apart on light and dark.
pub const PALETTE: [RGBColor; 5] = [
    RGBColor(0x2f, 0x7e, 0xd8),
    RGBColor(0xe8, 0x8a, 0x1a),
    RGBColor(0x2a, 0x9d, 0x6f),
    RGBColor(0x9b, 0x5d, 0xd0),
    RGBColor(0x7a, 0x84, 0x90),
];

/// A line of a plot; `None` interrupts it.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, Option<f64>)>,
}

/// Something that happened: a line with a label, and a band while it lasted.
#[derive(Debug, Clone)]
pub struct Mark {
    /// When it began.
    pub at: f64,
    /// When it was over.
    pub until: Option<f64>,
    /// What it was.
    pub label: String,
}

/// A plot.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The unit of its values. With `s` they are written as durations.
    pub unit: String,
    /// Its lines.
    pub series: Vec<Series>,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
    /// A logarithmic axis for the values.
    pub log: bool,
}

/// An axis. A logarithmic one is a linear one of logarithms.
#[derive(Clone)]
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    log: bool,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl Axis {
    fn of(plot: &Plot) -> Self {
        let values = || plot.series.iter().flat_map(|series| &series.points).filter_map(|(_, value)| *value);
        if plot.log {
            let positive = || values().filter(|value| *value > 0.0).map(f64::log10);
            let low = positive().fold(f64::INFINITY, f64::min);
            let high = positive().fold(f64::NEG_INFINITY, f64::max);
            let (low, high) = if low <= high { (low.floor(), high.ceil()) } else { (-3.0, 0.0) };
            let high = high.max(low + 1.0);
            let decades = (low as i32..=high as i32).map(f64::from).collect();
            return Self { low, high, ticks: decades, log: true };
        }
        let highest = values().fold(0.0, f64::max);
        let step = step(if highest > 0.0 { highest } else { 1.0 }, 5);
        let count = (highest * 1.03 / step).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|n| f64::from(n) * step).collect();
        Self { low: 0.0, high: count * step, ticks, log: false }
    }

    fn place(&self, value: f64) -> f64 {
        if self.log { value.max(1e-9).log10().max(self.low) } else { value }
    }

    fn label(&self, place: f64, unit: &str) -> String {
        let value = if self.log { 10f64.powf(place) } else { place };
        if unit == "s" { duration(value) } else { compact(value) }
    }
}

impl Plot {
    /// One with a linear axis.
    pub fn new(title: &str, unit: &str, marks: &[Mark], series: Vec<Series>) -> Self {
        Self { title: title.to_owned(), unit: unit.to_owned(), series, marks: marks.to_vec(), log: false }
    }

    /// The colour of a series, for its legend.
    pub fn color(number: usize) -> String {
        let RGBColor(red, green, blue) = PALETTE[number % PALETTE.len()];
        format!("#{red:02x}{green:02x}{blue:02x}")
    }

    /// The plot without title and legend, which the page has.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| anyhow!("plot {}: {error}", self.title))?;
        element(&svg, SIZE)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let axis = Axis::of(self);
        let times = || self.series.iter().flat_map(|series| &series.points).map(|(time, _)| *time);
        let from = times().fold(f64::INFINITY, f64::min).min(0.0);
        let to = times().fold(from + 1.0, f64::max);
        let per_second = f64::from(SIZE.0 - LEFT - 2 * MARGIN) / (to - from);
        let rows = label_rows(&self.marks, per_second);
        let above = MARGIN + LABEL_ROW * rows.iter().max().map_or(0, |row| row + 1);
        let pace = step(to - from, 12);
        let times = (0..=(to / pace) as u32).map(|n| f64::from(n) * pace).collect();
        let mut chart = ChartBuilder::on(&root)
            .margin(MARGIN)
            .margin_top(above)
            .x_label_area_size(BOTTOM)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(Axis { low: from, high: to, ticks: times, log: false }, axis.clone())?;
        for mark in &self.marks {
            let until = mark.until.unwrap_or(mark.at).min(to);
            chart.draw_series([Rectangle::new(
                [(mark.at, axis.low), (until, axis.high)],
                FAULT.mix(0.13).filled(),
            )])?;
        }
        let font = ("sans-serif", TEXT).into_font();
        chart
            .configure_mesh()
            .axis_style(GRID)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_label_style(font.clone().color(&INK))
            .y_label_style(font.clone().color(&INK))
            .x_label_formatter(&|time| format!("{} s", compact(*time)))
            .y_label_formatter(&|place| axis.label(*place, &self.unit))
            .draw()?;
        for (number, series) in self.series.iter().enumerate() {
            // Lines that lie on each other: the first ones show at the edges.
            let width = 2 + (self.series.len() - 1 - number) as u32 * 3 / 2;
            let style = PALETTE[number % PALETTE.len()].stroke_width(width);
            for part in series.points.split(|(_, value)| value.is_none()) {
                let line: Vec<(f64, f64)> =
                    part.iter().filter_map(|(time, value)| Some((*time, axis.place((*value)?)))).collect();
                // A value between two gaps would be a line without length.
                if let [alone] = line[..] {
                    chart.draw_series([Circle::new(alone, 2, style.filled())])?;
                } else {
                    chart.draw_series([PathElement::new(line, style)])?;
                }
            }
        }
        let label = font.color(&FAULT).pos(Pos::new(HPos::Left, VPos::Bottom));
        for (mark, row) in self.marks.iter().zip(rows) {
            let (x, bottom) = chart.backend_coord(&(mark.at, axis.low));
            let top = (above - LABEL_ROW * row) as i32;
            root.draw(&PathElement::new(vec![(x, bottom), (x, top - LABEL_ROW as i32 + 4)], FAULT))?;
            root.draw(&Text::new(mark.label.clone(), (x + 5, top - 3), label.clone()))?;
        }
        root.present()?;
        Ok(())
    }
}

/// The drawing alone, without a size: the page decides on it.
pub fn element(svg: &str, (width, height): (u32, u32)) -> Result<String> {
    let body = &svg[svg.find("<svg ").context("an svg element")?..];
    Ok(body.replacen(&format!("<svg width=\"{width}\" height=\"{height}\""), "<svg role=\"img\"", 1))
}

/// The row of each mark's label such that none lies on another.
fn label_rows(marks: &[Mark], per_second: f64) -> Vec<u32> {
    let mut ends: Vec<f64> = Vec::new();
    let mut rows = Vec::new();
    for mark in marks {
        let start = mark.at * per_second;
        let end = start + 12.0 + mark.label.chars().count() as f64 * LETTER;
        let free = ends.iter().position(|taken| *taken < start);
        match free {
            Some(row) => ends[row] = end,
            None => ends.push(end),
        }
        rows.push(free.unwrap_or(ends.len() - 1) as u32);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(log: bool) -> Plot {
        let points = vec![(0.0, Some(0.002)), (1.0, None), (2.0, Some(3.0)), (3.0, Some(0.5))];
        let mark = |at, label: &str| Mark { at, until: Some(at + 0.2), label: label.to_owned() };
        Plot {
            title: "Latency".to_owned(),
            unit: "s".to_owned(),
            series: vec![Series { name: "p50".to_owned(), points }],
            marks: vec![mark(1.0, "worker killed"), mark(1.1, "broker restarted")],
            log,
        }
    }

    #[test]
    fn a_plot_has_its_axis_marks_and_lines_as_text_and_paths() {
        for log in [false, true] {
            let svg = plot(log).svg().unwrap();
            assert!(svg.starts_with("<svg role=\"img\" viewBox="), "{}", &svg[..80]);
            for text in ["worker killed", "broker restarted", if log { "10 ms" } else { "2 s" }] {
                assert!(svg.contains(text), "{text} is missing: {svg}");
            }
        }
    }

    #[test]
    fn labels_that_would_overlap_are_in_different_rows() {
        assert_eq!(label_rows(&plot(false).marks, 100.0), [0, 1]);
        assert_eq!(label_rows(&plot(false).marks, 10_000.0), [0, 0]);
    }

    #[test]
    fn a_plot_without_values_is_drawn() {
        for log in [false, true] {
            assert!(Plot { series: Vec::new(), ..plot(log) }.svg().is_ok());
        }
    }
}
