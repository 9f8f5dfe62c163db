//! Answers that do not come from the service are no verdicts, and do not say that nothing was done.

use crate::client::tests::container;
use crate::error::Error;
use crate::transport::fake::{Fake, VERSION, answer, refusal, stranger, written};
use crate::types::{Condition, ETag, PutOptions};

/// A proxy's 404 is no ENOENT, and after a lost deletion no success.
#[tokio::test(start_paused = true)]
async fn what_a_proxy_says_of_a_blob_is_not_believed() {
    for status in [404, 409, 412] {
        let fake = Fake::default();
        let c = container(&fake);
        fake.will(stranger(status)).will(answer(
            200,
            &[VERSION[0], VERSION[1], ("content-length", "3")],
            b"",
        ));
        c.head("b", &Condition::none()).await.unwrap();
        // For ever: neither absent nor changed.
        fake.always(match status {
            404 => || stranger(404),
            409 => || stranger(409),
            _ => || stranger(412),
        });
        let error = c.delete("b", &Condition::none()).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
}

/// A gateway's 503 came after the service had done it: the retry's refusal is of our own making.
#[tokio::test(start_paused = true)]
async fn a_busy_gateway_does_not_say_that_nothing_was_done() {
    let etag = ETag("\"0x0\"".into());
    let options = PutOptions {
        condition: Condition::matches(&etag),
        ..PutOptions::default()
    };
    for status in [408, 429, 503] {
        let fake = Fake::default();
        let c = container(&fake);
        let head = [VERSION[0], VERSION[1], ("content-length", "0")];
        let busy = match status {
            408 => stranger(408),
            429 => stranger(429),
            _ => stranger(503),
        };
        fake.will(busy)
            .will(refusal(412, "ConditionNotMet"))
            .will(answer(200, &head, b""));
        let put = c.put("b", Default::default(), &options).await;
        assert_eq!(put.unwrap().etag.0, VERSION[0].1, "{status}");
        // The service's own says so.
        fake.will(refusal(503, "ServerBusy"))
            .will(refusal(412, "ConditionNotMet"));
        let put = c.put("b", Default::default(), &options).await;
        assert!(matches!(put, Err(Error::ConditionNotMet { .. })), "{status}");
        fake.will(written());
        c.put("b", Default::default(), &options).await.unwrap();
    }
}
