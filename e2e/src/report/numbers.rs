//! Numbers for people.

/// With thousands apart: `12,345`.
pub fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("-{text}") } else { text }
}

/// At most three digits where that is exact enough: `0.25`, `40`, `15k`.
pub fn compact(value: f64) -> String {
    let (scaled, suffix) = match value.abs() {
        large if large >= 999_500.0 => (value / 1e6, "M"),
        large if large >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.2}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A duration of so many seconds: `5.1 ms`.
pub fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        none if none <= 0.0 => return "0".to_owned(),
        short if short < 0.000_999_5 => (seconds * 1e6, "µs"),
        short if short < 0.999_5 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let text = if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{} {unit}", text.trim_end_matches(".0"))
}

/// The round distance (1, 2 or 5 times a power of ten) that divides a length into at most so many parts.
pub fn step(length: f64, parts: u32) -> f64 {
    let least = length / f64::from(parts);
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= least).unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 1_234_567.0, -1200.0].map(count),
            ["0", "999", "1,000", "1,234,567", "-1,200"]
        );
        assert_eq!([0.25, 40.0, 9500.0, 15_000.0, 2e6].map(compact), ["0.25", "40", "9500", "15k", "2M"]);
        assert_eq!(
            [0.0, 0.0005, 0.0051, 0.25, 1.0, 61.0].map(duration),
            ["0", "500 µs", "5.1 ms", "250 ms", "1 s", "61 s"]
        );
        let steps = [step(1700.0, 5), step(40.0, 12), step(1.0, 5)];
        assert_eq!(steps.map(compact), ["500", "5", "0.2"]);
    }
}
