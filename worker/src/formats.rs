//! How a topic's payloads are read: as the first subscription whose filter matches it says.

use penstock_crds::pipeline::Subscription;

use crate::decode::Reading;

/// Readings by filter.
#[derive(Debug)]
pub struct Formats {
    /// Filters with readings of their own; empty when all have the same.
    by_filter: Vec<(String, Reading)>,
    otherwise: Reading,
}

impl Formats {
    /// The readings of the subscriptions.
    pub fn new(subscriptions: &[Subscription]) -> Self {
        let readings: Vec<Reading> = subscriptions.iter().map(Reading::from).collect();
        let otherwise = readings.first().cloned().unwrap_or(Reading::Auto);
        if readings.iter().all(|reading| *reading == otherwise) {
            return Self { by_filter: Vec::new(), otherwise };
        }
        let filters = subscriptions.iter().map(|subscription| unshared(&subscription.filter).to_owned());
        Self { by_filter: filters.zip(readings).collect(), otherwise: Reading::Auto }
    }

    /// The reading of a topic.
    pub fn of(&self, topic: &[u8]) -> &Reading {
        self.by_filter
            .iter()
            .find(|(filter, _)| matches(filter.as_bytes(), topic))
            .map_or(&self.otherwise, |(_, reading)| reading)
    }
}

/// The filter within a shared subscription (MQTT-4.8.2).
pub fn unshared(filter: &str) -> &str {
    filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(filter, |(_, filter)| filter)
}

/// Whether the filter matches the topic (MQTT-4.7).
fn matches(filter: &[u8], topic: &[u8]) -> bool {
    let mut levels = topic.split(|byte| *byte == b'/');
    for wanted in filter.split(|byte| *byte == b'/') {
        match (wanted, levels.next()) {
            (b"#", _) => return true,
            (b"+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use penstock_crds::Format;
    use penstock_crds::mapping::TimeUnit;

    use super::*;

    #[test]
    fn filters_match_topics_as_the_protocol_says() {
        for (filter, topic, expected) in [
            ("a/+/c", "a/b/c", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/b", "a/b/c", false),
            ("+/+", "/x", true),
            ("#", "x/y", true),
        ] {
            assert_eq!(matches(filter.as_bytes(), topic.as_bytes()), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn the_first_matching_subscription_gives_the_format() {
        let subscription = |filter: &str, format| Subscription {
            filter: filter.into(),
            format,
            time_field: None,
            time_unit: None,
            mapping: None,
        };
        let formats = Formats::new(&[
            subscription("$share/g/a/#", Format::InfluxLine),
            subscription("#", Format::SenMl),
        ]);
        assert_eq!(formats.of(b"a/b"), &Reading::InfluxLine(TimeUnit::Nanoseconds));
        assert_eq!(formats.of(b"b"), &Reading::SenMl);
    }
}
