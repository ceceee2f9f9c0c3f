//! The sessions of a shard while it consumes: its filters divided between them, and those ended that are
//! no longer used.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::mqtt::session::{End, Marker, Order, Session};
use crate::mqtt::split::split;
use crate::mqtt::visit;
use crate::retire::{self, RetireError};
use crate::shard::Shard;
use crate::tenure::Tenure;

/// A shard's sessions, and what each is told.
pub struct Sessions<'a> {
    shard: &'a Shard,
    /// How many the manifest asks for.
    asked: usize,
    all: Vec<(Session, watch::Sender<Order>)>,
}

impl<'a> Sessions<'a> {
    /// As many as the manifest asks for, and those that the broker still has of an earlier number.
    pub fn open(shard: &'a Shard, tenure: &Tenure, filters: &[String]) -> Self {
        let asked = shard.settings.sessions;
        let count = asked.max(tenure.filters_by_session().len());
        shard.shared.lanes.use_up_to(count);
        let all = (0..count as u8).map(|lane| {
            let marker = (lane > 0).then(|| Arc::new(retire::marker(&shard.broker().of_session(lane))));
            (shard.session(lane, marker), watch::Sender::new(Order::Consume([].into())))
        });
        let sessions = Self { shard, asked, all: all.collect() };
        sessions.consume(tenure, filters);
        let lanes = &shard.shared.lanes;
        if (1..asked as u8).any(|lane| lanes.get(lane).wanted().is_empty()) {
            tracing::warn!(
                filters = filters.len(),
                sessions = asked,
                "fewer filters than sessions: some sessions stay closed"
            );
        }
        sessions
    }

    /// Divides the filters anew.
    pub fn consume(&self, tenure: &Tenure, filters: &[String]) {
        let held = tenure.filters_by_session();
        let mut parts = split(filters, self.asked, &held);
        parts.resize(self.all.len(), Vec::new());
        let parts: Vec<Arc<[String]>> = parts.into_iter().map(Into::into).collect();
        for ((session, _), part) in self.all.iter().zip(&parts) {
            self.shard.shared.lanes.get(session.lane).want(Arc::clone(part));
        }
        for ((session, order), part) in self.all.iter().zip(parts) {
            let used = held.get(usize::from(session.lane)).is_some_and(|held| !held.is_empty());
            let part = match &session.marker {
                // It has nothing more to consume: the marker, so that its end can be told.
                Some(marker) if part.is_empty() && used => [marker.topic.clone()].into(),
                _ => part,
            };
            order.send_if_modified(|order| {
                let next = Order::Consume(part);
                let changed = *order != next;
                *order = next;
                changed
            });
        }
    }

    /// All take nothing more in, and disconnect when nothing is in hand.
    pub fn settle(&self) {
        for (_, order) in &self.all {
            order.send_replace(Order::Settle);
        }
    }

    /// Runs them until all have settled, or the lease is lost.
    pub async fn run(&self, tenure: &Tenure) -> End {
        let mut running: FuturesUnordered<_> =
            self.all.iter().map(|(session, order)| self.run_one(session, order, tenure)).collect();
        while let Some(end) = running.next().await {
            if end == End::Superseded {
                return End::Superseded;
            }
        }
        End::Settled
    }

    async fn run_one(&self, session: &Session, order: &watch::Sender<Order>, tenure: &Tenure) -> End {
        let mut orders = order.subscribe();
        let Some(marker) = &session.marker else { return session.run(tenure, &mut orders).await };
        loop {
            let end = tokio::select! {
                end = session.run(tenure, &mut orders) => end,
                () = self.wind_up(session, marker, order, tenure) => End::Superseded,
            };
            let now = orders.borrow_and_update().clone();
            match now {
                _ if end == End::Superseded => return end,
                Order::Settle => return end,
                // It got filters again.
                Order::Consume(_) => {}
                Order::Leave => {
                    // Whoever has taken the lease since may use the session. No answer must not keep it from other orders.
                    tokio::select! {
                        held = tenure.confirmed() => if held.is_err() {
                            return End::Superseded;
                        },
                        _ = orders.changed() => continue,
                    }
                    if self.end(session, &marker.topic, tenure).await {
                        replace(order, &Order::Leave, Order::Consume([].into()));
                    } else {
                        let _ = orders.changed().await;
                    }
                }
            }
        }
    }

    /// Has a session leave that had filters before and has none now, when it is drained.
    async fn wind_up(
        &self,
        session: &Session,
        marker: &Marker,
        order: &watch::Sender<Order>,
        tenure: &Tenure,
    ) {
        let end = Order::Consume([marker.topic.clone()].into());
        let mut changes = order.subscribe();
        loop {
            if *changes.borrow_and_update() == end {
                tokio::select! {
                    drained = self.shard.drain(session.lane, tenure, marker, None) => match drained {
                        Ok(_) => replace(order, &end, Order::Leave),
                        Err(error) => tell(session.lane, &error),
                    },
                    // It got filters again, or all settle.
                    _ = changes.changed() => continue,
                }
            }
            let _ = changes.changed().await;
        }
    }

    /// Ends a session that is drained. Whether it did.
    async fn end(&self, session: &Session, topic: &str, tenure: &Tenure) -> bool {
        let options = self.shard.broker().of_session(session.lane);
        let ended = match visit::end_session(&options).await {
            Ok(()) => {
                tenure.session_ended(session.lane);
                tenure.unsubscribed(session.lane, topic).await.map_err(RetireError::from)
            }
            Err(lost) => Err(lost.into()),
        };
        match &ended {
            Ok(()) => tracing::info!(client_id = options.client_id, "ended a session that is no longer used"),
            Err(error) => tell(session.lane, error),
        }
        ended.is_ok()
    }
}

/// Gives another order where this one still holds.
fn replace(order: &watch::Sender<Order>, held: &Order, next: Order) {
    order.send_if_modified(|order| {
        let still = order == held;
        if still {
            *order = next;
        }
        still
    });
}

fn tell(session: u8, error: &RetireError) {
    tracing::warn!(session, %error, "a session that is no longer used is kept; the next start tries again");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::shard::tests::without_database;
    use crate::store::lease::LeaseRow;

    #[tokio::test]
    async fn a_session_is_ended_only_once_the_database_has_confirmed_whose_it_is() {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shard = without_database(broker.local_addr().unwrap().port());
        let marker = retire::marker(&shard.broker().of_session(1)).topic;
        let row = LeaseRow { sessions: vec![vec![], vec![marker]], ..LeaseRow::default() };
        let tenure = shard.tenure(row);
        let sessions = Sessions::open(&shard, &tenure, &[]);
        let (session, order) = &sessions.all[1];
        order.send_replace(Order::Leave);
        let mut life = std::pin::pin!(sessions.run_one(session, order, &tenure));
        tokio::select! {
            end = &mut life => panic!("{end:?}"),
            _ = broker.accept() => panic!("it ends the session of whoever has the shard now"),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        order.send_replace(Order::Settle);
        let end = tokio::time::timeout(Duration::from_secs(2), life).await.unwrap();
        assert_eq!(end, End::Settled, "and it does not keep the worker from its end");
    }

    #[tokio::test]
    async fn a_session_that_is_at_its_end_again_is_drained_again() {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shard = without_database(broker.local_addr().unwrap().port());
        let marker = retire::marker(&shard.broker().of_session(1)).topic;
        let tenure = shard.tenure(LeaseRow { sessions: vec![vec![], vec![marker]], ..LeaseRow::default() });
        let sessions = Sessions::open(&shard, &tenure, &[]);
        let (session, order) = &sessions.all[1];
        shard.shared.lanes.get(1).link().connected = true;
        let marker = session.marker.as_ref().unwrap();
        let winding_up = sessions.wind_up(session, marker, order, &tenure);
        let twice = async {
            broker.accept().await.unwrap();
            let end = order.send_replace(Order::Consume(["a/#".to_owned()].into()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            order.send_replace(end);
            // Sooner than one drain publishes its marker again.
            tokio::time::timeout(Duration::from_secs(2), broker.accept()).await.unwrap().unwrap();
        };
        tokio::select! {
            () = winding_up => panic!("it never ends by itself"),
            () = twice => {}
        }
    }
}
