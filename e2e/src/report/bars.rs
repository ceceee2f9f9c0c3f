//! A distribution over buckets, as SVG: for each bucket one bar of each series.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::numbers::{compact, duration, step};
use super::plot::{GRID, INK, PALETTE, element};

const SIZE: (i32, i32) = (960, 280);
const LEFT: i32 = 64;
const TOP: i32 = 12;
const BOTTOM: i32 = 34;
const TEXT: u32 = 13;

/// A distribution over buckets.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// The unit of its values.
    pub unit: String,
    /// Names of the buckets.
    pub buckets: Vec<String>,
    /// Names, and for each bucket a value.
    pub series: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// Adds what a histogram of seconds observed: upper bounds, and the share in each bucket, drawn in
    /// percent. All have the same bounds.
    pub fn add_shares(&mut self, name: String, shares: &[(f64, f64)]) {
        self.buckets = shares.iter().map(|(bound, _)| format!("≤ {}", duration(*bound))).collect();
        self.series.push((name, shares.iter().map(|(_, share)| share * 100.0).collect()));
    }

    /// Leaves out the buckets at both ends that have next to nothing in any series.
    pub fn trim(&mut self) {
        let filled = |bucket: usize| {
            self.series.iter().any(|(_, values)| values.get(bucket).is_some_and(|value| *value >= 0.05))
        };
        let first = (0..self.buckets.len()).find(|bucket| filled(*bucket)).unwrap_or(0);
        let last = (0..self.buckets.len()).rfind(|bucket| filled(*bucket)).map_or(0, |last| last + 1);
        self.buckets = self.buckets.get(first..last).unwrap_or_default().to_vec();
        for (_, values) in &mut self.series {
            *values = values.get(first..last).unwrap_or_default().to_vec();
        }
    }

    /// The bars without title and legend, which the page has.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| anyhow!("bars {}: {error}", self.title))?;
        element(&svg, (SIZE.0 as u32, SIZE.1 as u32))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, (SIZE.0 as u32, SIZE.1 as u32)).into_drawing_area();
        let highest =
            self.series.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max).max(1e-9);
        let unit = step(highest, 5);
        let top = (highest / unit).ceil() * unit;
        let floor = SIZE.1 - BOTTOM;
        let y = |value: f64| floor - (value / top * f64::from(floor - TOP)).round() as i32;
        let font = ("sans-serif", TEXT).into_font().color(&INK);
        for tick in 0..=(top / unit).round() as u32 {
            let value = f64::from(tick) * unit;
            root.draw(&PathElement::new(vec![(LEFT, y(value)), (SIZE.0 - 8, y(value))], GRID))?;
            let style = font.clone().pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(compact(value), (LEFT - 6, y(value)), style))?;
        }
        let width = f64::from(SIZE.0 - 8 - LEFT) / self.buckets.len().max(1) as f64;
        let bar = width * 0.8 / self.series.len().max(1) as f64;
        for (bucket, name) in self.buckets.iter().enumerate() {
            let left = f64::from(LEFT) + bucket as f64 * width;
            for (number, (_, values)) in self.series.iter().enumerate() {
                let from = left + width * 0.1 + number as f64 * bar;
                let value = values.get(bucket).copied().unwrap_or_default();
                let corners = [(from as i32, y(value)), ((from + bar) as i32, floor)];
                root.draw(&Rectangle::new(corners, PALETTE[number % PALETTE.len()].filled()))?;
            }
            let style = font.clone().pos(Pos::new(HPos::Center, VPos::Top));
            root.draw(&Text::new(name.clone(), ((left + width / 2.0) as i32, floor + 8), style))?;
        }
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_without_anything_at_the_ends_are_left_out_and_the_others_drawn() {
        let mut bars = Bars {
            title: "Latency".to_owned(),
            unit: "%".to_owned(),
            buckets: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
            series: vec![("x".to_owned(), vec![0.0, 60.0, 40.0, 0.01])],
        };
        bars.trim();
        assert_eq!(bars.buckets, ["b", "c"]);
        assert_eq!(bars.series[0].1, [60.0, 40.0]);
        let svg = bars.svg().unwrap();
        assert_eq!(svg.matches("<rect").count(), 2, "{svg}");
    }
}
