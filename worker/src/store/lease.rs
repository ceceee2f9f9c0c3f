//! Who runs a shard now, as a row in the database. All times are the database's.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::{Connection, PgPool, Row};
use uuid::Uuid;

use super::connection;
pub use super::lease_rules::TTL;
use super::lease_rules::{Asker, Decision, Held, Purpose, Wait, consumed_until, decide, wait_after};
use crate::mqtt::lanes::MAX_SESSIONS;

/// How long one question about a lease may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// `namespace/pipeline/shard`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseKey(pub String);

/// One start of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// The instance: the pod's UID, or the machine's id.
    pub instance: String,
    /// This start of it.
    pub incarnation: Uuid,
}

/// What the row remembers beside its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseRow {
    /// Filters that each of the broker's sessions may have; the first session's at least.
    pub sessions: Vec<Vec<String>>,
    /// Highest plan generation that was followed.
    pub plan_generation: i64,
    /// Sessions that the broker should have.
    pub existed: BTreeSet<u8>,
    /// How long ago the shard was consumed, when it was taken; none if it never was.
    pub consumed_ago: Option<Duration>,
}

impl LeaseRow {
    /// The filters of one session, which has a place from now on.
    pub fn of(&mut self, session: u8) -> &mut Vec<String> {
        let index = usize::from(session);
        if self.sessions.len() <= index {
            self.sessions.resize(index + 1, Vec::new());
        }
        &mut self.sessions[index]
    }

    fn from_columns(
        filters: Vec<String>,
        more: &[String],
        plan_generation: i64,
        session_existed: bool,
    ) -> Self {
        let existed = session_existed.then_some(0).into_iter().collect();
        let mut row = Self { sessions: vec![filters], plan_generation, existed, consumed_ago: None };
        for (session, filter) in more.iter().filter_map(|entry| entry.split_once(':')) {
            match session.parse() {
                Ok(session) if usize::from(session) < MAX_SESSIONS => {
                    row.of(session).push(filter.to_owned());
                    // It is opened for its filters, which are noted before they are subscribed.
                    row.existed.insert(session);
                }
                _ => {}
            }
        }
        row
    }
}

/// The column for a session's filters, and how they stand there.
pub(super) fn column(session: u8, filters: &[String]) -> (&'static str, Vec<String>) {
    match session {
        0 => ("filters", filters.to_vec()),
        _ => ("more_filters", filters.iter().map(|filter| format!("{session}:{filter}")).collect()),
    }
}

/// Whether a lease is still held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is.
    Held,
    /// Another has it.
    Superseded {
        /// The holder.
        by: String,
    },
}

/// How an attempt to acquire ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Taken(LeaseRow),
    /// It may be ours after a preflight.
    NeedsPreflight,
    /// Not now.
    Wait {
        /// The holder; empty if nobody holds it.
        holder: String,
        /// Why.
        why: Wait,
        /// Highest plan generation that the shard has followed, or that ended it.
        plan_generation: i64,
    },
}

/// Why nothing is known of a lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The database failed or refused.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// No answer in time.
    #[error("the database did not answer within {DEADLINE:?}")]
    Deadline,
    /// Another holds it.
    #[error("another worker holds the lease")]
    Superseded,
    /// The shard is wanted again.
    #[error(
        "the shard follows plan {followed}, which is newer than the one that ends it; retire it by the newest"
    )]
    OutdatedPlan {
        /// Generation of the plan that is followed.
        followed: i64,
    },
}

/// Registers the instance at its first call, and takes the lease if the rules allow.
/// `superseded`: this incarnation held the lease before and lost it.
pub async fn acquire(
    pool: &PgPool,
    key: &LeaseKey,
    me: &Me,
    purpose: Purpose,
    superseded: bool,
) -> Result<Acquired, LeaseError> {
    within_deadline(ask_for(pool, key, me, purpose, superseded)).await
}

pub(super) async fn within_deadline<T>(
    question: impl Future<Output = Result<T, LeaseError>>,
) -> Result<T, LeaseError> {
    tokio::time::timeout(DEADLINE, question).await.unwrap_or(Err(LeaseError::Deadline))
}

async fn ask_for(
    pool: &PgPool,
    key: &LeaseKey,
    me: &Me,
    purpose: Purpose,
    superseded: bool,
) -> Result<Acquired, LeaseError> {
    let mut connection = connection::borrow(pool).await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("INSERT INTO penstock.shard_lease (shard) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(&key.0)
        .execute(&mut *transaction)
        .await?;
    // The row's lock orders all askers; ranks are given under it.
    let row = sqlx::query(
        "SELECT instance, retiring, \
                CASE WHEN isfinite(expires_at) THEN (extract(epoch FROM expires_at) * 1000000)::int8 ELSE 0 END, \
                filters, plan_generation, session_existed, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, \
                more_filters \
         FROM penstock.shard_lease WHERE shard = $1 FOR UPDATE",
    )
    .bind(&key.0)
    .fetch_one(&mut *transaction)
    .await?;
    let (holder, retiring, expires_at, now): (Option<String>, bool, i64, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(6)?);
    let more: Vec<String> = row.try_get(7)?;
    let mut state = LeaseRow::from_columns(row.try_get(3)?, &more, row.try_get(4)?, row.try_get(5)?);

    sqlx::query(
        "INSERT INTO penstock.shard_instance (shard, instance, rank) \
         SELECT $1, $2, coalesce(max(rank), 0) + 1 FROM penstock.shard_instance WHERE shard = $1 \
         ON CONFLICT DO NOTHING",
    )
    .bind(&key.0)
    .bind(&me.instance)
    .execute(&mut *transaction)
    .await?;
    let (rank, wait_until) = rank_of(&mut transaction, key, &me.instance).await?;
    let holder_rank = match &holder {
        Some(holder) => rank_of(&mut transaction, key, holder).await?.0,
        None => 0,
    };
    let held = Held {
        instance: holder.clone(),
        rank: holder_rank,
        retiring,
        expires_at,
        plan_generation: state.plan_generation,
    };
    let asker = Asker { instance: me.instance.clone(), rank, wait_until, superseded };
    let answer = match decide(&held, &asker, purpose, now) {
        Decision::Take { supersedes } => {
            if let (true, Some(loser)) = (supersedes, &holder) {
                penalise(&mut transaction, key, loser, now).await?;
            }
            sqlx::query(
                "UPDATE penstock.shard_lease SET instance = $2, incarnation = $3, retiring = $4, \
                 expires_at = clock_timestamp() + $5 * interval '1 second' WHERE shard = $1",
            )
            .bind(&key.0)
            .bind(&me.instance)
            .bind(me.incarnation)
            .bind(matches!(purpose, Purpose::Retire { .. }))
            .bind(TTL.as_secs_f64())
            .execute(&mut *transaction)
            .await?;
            let ago =
                consumed_until(&held, &me.instance, now).and_then(|until| u64::try_from(now - until).ok());
            state.consumed_ago = ago.map(Duration::from_micros);
            Acquired::Taken(state)
        }
        Decision::Preflight => Acquired::NeedsPreflight,
        Decision::Wait(why) => {
            Acquired::Wait { holder: holder.unwrap_or_default(), why, plan_generation: held.plan_generation }
        }
        Decision::Outdated => return Err(LeaseError::OutdatedPlan { followed: held.plan_generation }),
    };
    transaction.commit().await?;
    connection.give_back();
    Ok(answer)
}

async fn rank_of(
    connection: &mut sqlx::PgConnection,
    key: &LeaseKey,
    instance: &str,
) -> Result<(i64, i64), sqlx::Error> {
    let row: Option<(i64, i64)> = sqlx::query_as(
        "SELECT rank, CASE WHEN isfinite(wait_until) THEN (extract(epoch FROM wait_until) * 1000000)::int8 ELSE 0 END \
         FROM penstock.shard_instance WHERE shard = $1 AND instance = $2",
    )
    .bind(&key.0)
    .bind(instance)
    .fetch_optional(connection)
    .await?;
    Ok(row.unwrap_or_default())
}

async fn penalise(
    connection: &mut sqlx::PgConnection,
    key: &LeaseKey,
    loser: &str,
    now: i64,
) -> Result<(), sqlx::Error> {
    let losses: Option<i32> = sqlx::query_scalar(
        "UPDATE penstock.shard_instance SET losses = losses + 1 WHERE shard = $1 AND instance = $2 RETURNING losses",
    )
    .bind(&key.0)
    .bind(loser)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(losses) = losses {
        sqlx::query(
            "UPDATE penstock.shard_instance SET wait_until = 'epoch'::timestamptz + $3 * interval '1 microsecond' \
             WHERE shard = $1 AND instance = $2",
        )
        .bind(&key.0)
        .bind(loser)
        .bind(now + wait_after(losses))
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Forgets the shard, at the end of its retirement; but for the highest plan, if there is one: a worker whose end
/// comes late, or that is started once more by an older plan, must not begin again.
pub async fn forget(pool: &PgPool, key: &LeaseKey, me: &Me, plan: Option<i64>) -> Result<(), LeaseError> {
    let forget = async {
        let ended = "WITH mine AS (UPDATE penstock.shard_lease SET instance = NULL, incarnation = NULL, \
               retiring = false, expires_at = '-infinity', filters = '{}', more_filters = '{}', \
               session_existed = false, plan_generation = greatest(plan_generation, $4) \
             WHERE shard = $1 AND instance = $2 AND incarnation = $3 RETURNING shard), \
             instances AS (DELETE FROM penstock.shard_instance i USING mine WHERE i.shard = mine.shard) \
             SELECT count(*) FROM mine";
        let query = sqlx::query_scalar(ended).bind(&key.0).bind(&me.instance).bind(me.incarnation);
        let mine: i64 = query.bind(plan.unwrap_or_default()).fetch_one(pool).await?;
        if mine == 0 {
            return Err(LeaseError::Superseded);
        }
        let never_planned =
            "DELETE FROM penstock.shard_lease WHERE shard = $1 AND instance IS NULL AND plan_generation = 0";
        sqlx::query(never_planned).bind(&key.0).execute(pool).await?;
        Ok(())
    };
    within_deadline(forget).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_of_each_session_come_back_as_they_were_noted() {
        let noted: Vec<Vec<String>> = [vec!["a/#"], vec!["b:c/+", "7:x"], vec![], vec!["d"]]
            .map(|filters| filters.into_iter().map(str::to_owned).collect())
            .into();
        let mut more = vec!["no session".to_owned(), "99:x".to_owned(), "300:x".to_owned()];
        for session in 1..4u8 {
            more.extend(column(session, &noted[usize::from(session)]).1);
        }
        let row = LeaseRow::from_columns(column(0, &noted[0]).1, &more, 3, true);
        assert_eq!(
            row,
            LeaseRow { sessions: noted, plan_generation: 3, existed: [0, 1, 3].into(), consumed_ago: None }
        );
    }
}
