//! `GET /v1/spokes/events`: transitions as server-sent events, whose ids are those of the journal.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::app::App;
use crate::api::error::ApiError;
use crate::spokes::reconciler::Spokes;
use crate::spokes::store::Transition;

/// Comments keep the connection open through proxies while nothing happens.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Lines of the journal per read.
const PAGE: usize = 256;
/// Events buffered for a slow reader. A slower one continues from the journal.
const UNDER_WAY: usize = 64;

/// Streams from now on, or from after the id in `Last-Event-ID` or `?after=`.
pub(in crate::api) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default());
    let query = uri.query().into_iter().flat_map(|query| query.split('&'));
    let after = query.filter_map(|pair| pair.strip_prefix("after=")).next_back().or(header);
    let after = after.map(|text| {
        let wrong = || ApiError::field("after", format!("found {text:?}, expected the id of an event"));
        text.parse::<i64>().map_err(|_| wrong())
    });
    let after = after.transpose()?;
    let (tell, told) = mpsc::channel(UNDER_WAY);
    let spokes = app.spokes().clone();
    tokio::spawn(async move {
        tokio::select! {
            () = follow(&spokes, after, &tell) => {}
            () = spokes.stopping() => {}
            () = tell.closed() => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(told)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Sends events until the client is gone.
async fn follow(spokes: &Spokes, after: Option<i64>, tell: &mpsc::Sender<Result<Event, Infallible>>) {
    let mut news = spokes.registry().news();
    let mut last = after;
    let mut began = true;
    loop {
        if let Some(behind) = last {
            // Read what the journal has after that id. Events published meanwhile arrive a second
            // time and are skipped.
            let Ok(lines) = spokes.journal(behind, PAGE).await else { return };
            let more = lines.len() == PAGE;
            if std::mem::take(&mut began) && lines.is_empty() && behind > 0 {
                // The id is the latest, or from another journal that went further. In the latter
                // case, send every event.
                let Ok(known) = spokes.journal(behind - 1, 1).await else { return };
                if known.is_empty() {
                    last = None;
                }
            }
            for line in lines {
                last = Some(line.id);
                if tell.send(Ok(event(&line))).await.is_err() {
                    return;
                }
            }
            if more {
                continue;
            }
        }
        let lost = loop {
            match news.recv().await {
                Ok(line) if last.is_none_or(|last| line.id > last) => {
                    last = Some(line.id);
                    if tell.send(Ok(event(&line))).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => break lost,
                Err(RecvError::Closed) => return,
            }
        };
        tracing::debug!(lost, "a reader of spoke events is slow and continues from the journal");
    }
}

fn event(line: &Transition) -> Event {
    let event = Event::default().event("transition").id(line.id.to_string());
    event.json_data(line).expect("texts and numbers are always JSON")
}
