//! Blob Batch: deletions, each answered for itself. Not over the channel, which carries no answer to a POST:
//! then HTTPS is used, which is off here. So without notes, which would have to be the same there.

use std::time::Duration;

use anyhow::Result;
use blob_client::{Condition, ETag};
use e2e::store::SasOptions;

use crate::context::{Context, kind};
use crate::same;
use crate::services::Target;

pub(crate) async fn deletions(c: &Context) -> Result<()> {
    if matches!(c.target, Target::EmbeddedChannel | Target::AzuriteChannel) {
        return Ok(());
    }
    let container = c.container()?;
    for name in ["a", "dir/ö b+%?#", "changed", "held", "stays"] {
        c.put(name, b"1").await?;
    }
    container.acquire_lease("held", Some(60)).await?;
    let seen = container.head("a", &Condition::none()).await?.etag;
    let other = Condition::matches(&ETag("\"0x8000000000000\"".into()));
    let none = Condition::none;
    let outcomes = container
        .delete_batch(&[
            ("a", Condition::matches(&seen)),
            ("dir/ö b+%?#", none()),
            ("changed", other),
            ("held", none()),
            ("none", none()),
        ])
        .await?;
    let kinds: Vec<String> = outcomes.iter().map(kind).collect();
    same!(
        kinds,
        [
            "ok",
            "ok",
            "ConditionNotMet",
            "LeaseConflict LeaseIdMissing",
            "BlobNotFound"
        ]
    );
    for (name, there) in [
        ("a", false),
        ("dir/ö b+%?#", false),
        ("changed", true),
        ("held", true),
        ("stays", true),
    ] {
        same!(container.head(name, &Condition::none()).await.is_ok(), there);
    }
    container.break_lease("held").await?;
    let many: Vec<String> = (0..256).map(|number| format!("many/{number}")).collect();
    for name in &many[..20] {
        c.put(name, b"1").await?;
    }
    let all: Vec<(&str, Condition)> = many.iter().map(|name| (name.as_str(), none())).collect();
    let outcomes = container.delete_batch(&all).await?;
    let deleted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    same!((outcomes.len(), deleted), (256, 20));
    Ok(())
}

pub(crate) async fn by_sas(c: &Context) -> Result<()> {
    if c.differs("a batch by a SAS is answered with 500 and without a request id") {
        return Ok(());
    }
    let hour = Duration::from_secs(3600);
    for sas in [
        c.container_sas(&SasOptions::new("rdl", hour)),
        c.account_sas("co", &SasOptions::new("rdl", hour)),
    ] {
        c.put("b", b"1").await?;
        let container = c.with_sas(sas)?;
        let outcomes = container.delete_batch(&[("b", Condition::none())]).await?;
        let kinds: Vec<String> = outcomes.iter().map(kind).collect();
        same!(kinds, ["ok"]);
    }
    Ok(())
}
