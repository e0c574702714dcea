//! Waiting for a condition, with a deadline and a word about what was still missing.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use crate::{Error, Result};

const INTERVAL: Duration = Duration::from_millis(40);

/// Asks `probe` again and again until it answers `Ok`; its `Err` says what is still missing.
///
/// Fails with [`Error::TimedOut`], which carries the last such word, once `limit` is over. A probe that hangs counts as
/// missing.
pub async fn eventually<T, P, F>(what: &str, limit: Duration, mut probe: P) -> Result<T>
where
    P: FnMut() -> F,
    F: Future<Output = std::result::Result<T, String>>,
{
    let deadline = Instant::now() + limit;
    let mut missing = String::from("no answer yet");
    loop {
        match tokio::time::timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => missing = why,
            Err(_) => return Err(Error::TimedOut { what: what.into(), limit, missing }),
        }
        if Instant::now() + INTERVAL >= deadline {
            return Err(Error::TimedOut { what: what.into(), limit, missing });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_what_was_still_missing() {
        let mut looks = 0;
        let found = eventually("the third look", Duration::from_secs(5), || {
            looks += 1;
            std::future::ready(if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) })
        })
        .await;
        assert_eq!(found.unwrap(), 3);

        let never =
            eventually("rain", Duration::from_millis(100), || std::future::ready(Err::<(), _>("dry".into()))).await;
        assert_eq!(never.unwrap_err().to_string(), "waited 0.1 s for rain: dry");
        let hangs =
            eventually("news", Duration::from_millis(100), std::future::pending::<std::result::Result<(), _>>).await;
        assert_eq!(hangs.unwrap_err().to_string(), "waited 0.1 s for news: no answer yet");
    }
}
