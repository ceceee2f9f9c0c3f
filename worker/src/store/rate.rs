//! How many messages a second the database has taken lately.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// Over how long.
const SPAN: Duration = Duration::from_mins(5);
/// Counting a busy table may take longer than the answer is worth.
const DEADLINE: Duration = Duration::from_secs(5);

/// Messages with samples, a second: those of one device at one time are one message. `None` if that cannot
/// be counted soon.
pub async fn recent(options: &PgConnectOptions) -> Option<f64> {
    let options = options.clone().options([("statement_timeout", DEADLINE.as_millis().to_string())]);
    let count = async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let messages: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT DISTINCT e.device_id, s.ts \
             FROM penstock.sample s JOIN penstock.series e USING (series_id) \
             WHERE s.ts > now() - $1 * interval '1 second' AND s.ts <= now()) m",
        )
        .bind(SPAN.as_secs_f64())
        .fetch_one(&mut connection)
        .await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(messages as f64 / SPAN.as_secs_f64())
    };
    tokio::time::timeout(DEADLINE * 2, count).await.ok()?.ok()
}
