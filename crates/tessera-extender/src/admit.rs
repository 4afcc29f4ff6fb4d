//! Admission: transport in, the engine's verdict out.

use tessera_engine::{Vendors, admission};
use tessera_http::BodyError;
use tessera_wire::admission::{Answer, Review, ReviewVersion};

use crate::app::App;
use crate::args::SchedulerArgs;

/// How pods are admitted, as the flags say. Trusted to write allocations are cluster administrators, kubelets,
/// kube-scheduler and the service accounts of our own namespace and of `kube-system`, where device plugins of
/// other makers live.
pub(crate) fn settings(args: &SchedulerArgs, vendors: &Vendors) -> admission::Settings {
    let mut settings = admission::Settings {
        scheduler_name: args.scheduler_name.clone(),
        force_overwrite_default_scheduler: args.force_overwrite,
        ..admission::Settings::default()
    };
    // With a selector some nodes are unknown, and what they offer is too.
    if args.refuse_not_enabled && args.node_labels.is_none() {
        settings.not_enabled = tessera_vendors::not_enabled(vendors);
    }
    settings.trusted_users.push("system:kube-scheduler".to_owned());
    for namespace in [args.namespace.as_str(), "kube-system"] {
        settings
            .trusted_groups
            .push(format!("system:serviceaccounts:{namespace}"));
    }
    settings
}

impl App {
    /// Answers `POST /webhook`.
    pub(crate) fn mutate(&self, is_json: bool, body: Result<&[u8], BodyError>) -> serde_json::Value {
        self.judge(is_json, body, |review| {
            let creates = matches!(review.operation.as_str(), "CREATE" | "") && review.sub_resource.is_empty();
            if !creates {
                return Answer::allow(Vec::new());
            }
            let view = self.books.view();
            admission::review(
                &review.object,
                &review.namespace,
                &self.settings.admit,
                &self.engine,
                &view.snapshot,
            )
            .into()
        })
    }

    /// Answers `POST /validate`: only the scheduler and the node agents change what was decided, and a
    /// live resize must read.
    pub(crate) fn validate(&self, is_json: bool, body: Result<&[u8], BodyError>) -> serde_json::Value {
        self.judge(is_json, body, |review| {
            if review.operation != "UPDATE" {
                return Answer::allow(Vec::new());
            }
            let refusal = admission::refuse_update(
                &review.old_object,
                &review.object,
                &review.user,
                &review.groups,
                &self.settings.admit,
                &self.engine,
            );
            if let Some(text) = refusal {
                return Answer::deny(403, text);
            }
            match admission::check_resize(&review.old_object, &review.object) {
                Ok(()) => Answer::allow(Vec::new()),
                Err(text) => Answer::deny(422, text),
            }
        })
    }

    fn judge(
        &self,
        is_json: bool,
        body: Result<&[u8], BodyError>,
        decide: impl FnOnce(&Review) -> Answer,
    ) -> serde_json::Value {
        if !is_json {
            return Answer::deny(400, "the content type must be application/json").print(None, "");
        }
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                let code = if matches!(error, BodyError::TooLarge(_)) {
                    413
                } else {
                    400
                };
                return Answer::deny(code, error.to_string()).print(Some(ReviewVersion::V1), "");
            }
        };
        match Review::read(body) {
            Ok(review) => {
                let answer = decide(&review);
                if !answer.allowed {
                    self.metrics.denied.inc();
                    tracing::info!(namespace = %review.namespace, pod = %review.name, user = %review.user, reason = %answer.message, "Denied a pod.");
                }
                answer.print(Some(review.version), &review.uid)
            }
            Err(error) => Answer::deny(error.code, &error.text).print(Some(error.version), &error.uid),
        }
    }
}
