//! How a topic's payloads are read: as the first subscription whose filter matches it says.

use penstock_crds::source::Subscription;

use crate::decode::Reading;

/// Filters of before that are remembered.
const REMEMBERED: usize = 500;

/// Readings by filter.
#[derive(Debug)]
pub struct Formats {
    by_filter: Vec<(String, Reading)>,
    /// The reading of all of them, where they have the same.
    same: Option<Reading>,
}

impl Formats {
    /// The readings of the subscriptions.
    pub fn new(subscriptions: &[Subscription]) -> Self {
        let filter = |subscription: &Subscription| unshared(&subscription.filter).to_owned();
        let by_filter = subscriptions.iter().map(|subscription| (filter(subscription), subscription.into()));
        Self::of_list(by_filter.collect())
    }

    fn of_list(by_filter: Vec<(String, Reading)>) -> Self {
        let first = by_filter.first().map_or(&Reading::Auto, |(_, reading)| reading);
        let same = by_filter.iter().all(|(_, reading)| reading == first).then(|| first.clone());
        Self { by_filter, same }
    }

    /// These, and behind them the filters of before that are no longer here: the broker may still send
    /// what it queued for them.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        let gone: Vec<_> = before
            .by_filter
            .iter()
            .filter(|(filter, _)| !self.by_filter.iter().any(|(present, _)| present == filter))
            .take(REMEMBERED)
            .cloned()
            .collect();
        self.by_filter.extend(gone);
        Self::of_list(self.by_filter)
    }

    /// The reading of a topic.
    pub fn of(&self, topic: &[u8]) -> &Reading {
        if let Some(same) = &self.same {
            return same;
        }
        self.by_filter
            .iter()
            .find(|(filter, _)| matches(filter.as_bytes(), topic))
            .map_or(&Reading::Auto, |(_, reading)| reading)
    }

    /// The filter that a topic came by: the first that matches.
    pub fn filter_of(&self, topic: &[u8]) -> Option<&str> {
        let mut all = self.by_filter.iter().map(|(filter, _)| filter.as_str());
        if self.by_filter.len() == 1 {
            all.next()
        } else {
            all.find(|filter| matches(filter.as_bytes(), topic))
        }
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

    fn subscription(filter: &str, format: Format) -> Subscription {
        Subscription { filter: filter.into(), format, time_field: None, time_unit: None, mapping: None }
    }

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
        let formats = Formats::new(&[
            subscription("$share/g/a/#", Format::InfluxLine),
            subscription("#", Format::SenMl),
        ]);
        assert_eq!(formats.of(b"a/b"), &Reading::InfluxLine(TimeUnit::Nanoseconds));
        assert_eq!(formats.of(b"b"), &Reading::SenMl);
        assert_eq!((formats.filter_of(b"a/b"), formats.filter_of(b"b")), (Some("a/#"), Some("#")));
    }

    #[test]
    fn what_is_on_its_way_by_a_filter_that_is_gone_is_read_as_it_was() {
        let first = Formats::new(&[subscription("a/#", Format::SenMl)]);
        let second = Formats::new(&[subscription("b/#", Format::V1)]).after(&first);
        assert_eq!((second.of(b"a/x"), second.of(b"b/x")), (&Reading::SenMl, &Reading::V1));
        let third = Formats::new(&[subscription("a/#", Format::Je02)]).after(&second);
        assert_eq!((third.of(b"a/x"), third.of(b"b/x")), (&Reading::Je02, &Reading::V1));
    }
}
