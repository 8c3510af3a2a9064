//! The facts of the post, which every inspection compares with.

use std::sync::Arc;

use super::inspection::aside;
use super::parts::Reconciler;
use crate::adapter::{Post, Refusal};
use crate::allocator;
use crate::spokes::folder;
use crate::spokes::life::Reason;
use crate::spokes::reason_code::Code;

impl Reconciler {
    /// Reads the post's facts. Its identity is stored and reused while the file is unchanged,
    /// because hashing a large one takes a while.
    pub(super) async fn read_post(&mut self) {
        self.open_post().await;
        // Digests of folders that were found to hold the post's model.
        let kin = self.store.kin(&self.here.post);
        match (&mut self.post, kin) {
            (Some(Ok(post)), Ok(kin)) => Arc::make_mut(post).kin = kin.into_keys().collect(),
            (_, Err(error)) => tracing::error!(%error, "the post's kinships can't be read"),
            _ => {}
        }
    }

    async fn open_post(&mut self) {
        let path = self.settings.model.clone();
        let print = path
            .parent()
            .zip(path.file_name())
            .and_then(|(folder, name)| folder::look(folder, name.to_str()?).ok().flatten());
        let key = serde_json::json!([path, print]).to_string();
        let noted = self.store.note(&key).ok().flatten().and_then(|text| text.parse().ok());
        if let Some(identity) = noted {
            self.here.post = identity;
            self.post = Some(open_post(move || Post::noted(&path, identity)).await);
            return;
        }
        self.post = Some(open_post(move || Post::open(&path)).await);
        if let Some(Ok(post)) = &self.post {
            self.here.post = post.sha256;
            let kept = self.store.set_note(&key, &post.sha256.to_string());
            if let Err(error) = kept {
                tracing::warn!(%error, "the post's identity can't be remembered");
            }
        }
    }
}

/// Opens the post on a thread of its own.
pub(super) async fn open_post(
    open: impl FnOnce() -> Result<Post, Refusal> + Send + 'static,
) -> Result<Arc<Post>, Reason> {
    let open = move || {
        let opened = open();
        // The texts of a large vocabulary were in memory.
        allocator::give_back();
        opened
    };
    let unreadable =
        |message: String| Reason::new(Code::PostUnreadable, format!("the post can't be read: {message}"));
    match aside(open).await {
        Ok(Ok(post)) => Ok(Arc::new(post)),
        Ok(Err(refusal)) => Err(unreadable(refusal.reason.to_string())),
        Err(why) => Err(unreadable(why.message)),
    }
}
