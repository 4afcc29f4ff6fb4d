//! From a command line to a running service, and back to nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tessera_engine::{Defaults, Engine};
use tessera_http::{Certificate, Health, Limits, Listener, serve};
use tessera_kube::books::{self, Input, SteadyClock};
use tessera_kube::lease::{LeaseSettings, Role, Sighting, campaign};
use tessera_kube::watch::{Freshness, follow};
use tessera_kube::{Client, ClientSettings, connect, events, reach};
use tessera_wire::config::DeviceConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit;
use crate::app::{App, Cluster, Parts, Settings};
use crate::args::{LogFormat, SchedulerArgs};
use crate::certificate;
use crate::metrics::Page;
use crate::routes::{Guard, Routes, metrics_router, router};

/// How long a request waits for the first picture of the cluster; below kube-scheduler's usual 30 s.
const SYNC_WAIT: Duration = Duration::from_secs(20);

/// Sends log lines to standard error, as the flags say; `RUST_LOG` overrides the level.
pub fn init_logs(args: &SchedulerArgs) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(args.log_filter()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let outcome = match args.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if outcome.is_err() {
        tracing::debug!("Log output was set up before.");
    }
}

/// Runs the service until SIGTERM or SIGINT; requests in flight are answered first.
///
/// # Errors
/// The flags, the configuration or a certificate are not usable, a port is taken, or no API server is configured.
/// An API server that is configured and does not answer is no error: `/readyz` says so and the service waits.
pub async fn run(args: SchedulerArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    let signals = signals().context("listening for signals")?;
    let handler = tokio::spawn(async move {
        signals.await;
        tracing::info!("Asked to stop.");
        on_signal.cancel();
    });
    let outcome = run_until(args, stop).await;
    handler.abort();
    outcome
}

fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Named tasks that must live as long as the service.
struct Tasks {
    set: JoinSet<&'static str>,
    health: Health,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            work.await;
            name
        });
    }

    /// Reports tasks that end while they should not, until `stop`.
    async fn watch(&mut self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                ended = self.set.join_next() => match ended {
                    None => return stop.cancelled().await,
                    Some(_) if stop.is_cancelled() => return,
                    Some(Ok(name)) => self.died(name, "it returned"),
                    Some(Err(error)) => self.died("of the service", &error.to_string()),
                },
            }
        }
    }

    fn died(&self, name: &str, why: &str) {
        tracing::error!(task = name, error = why, "A task of the service ended.");
        self.health.task_died(name, why);
    }

    async fn finish(mut self, patience: Duration) {
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("Ended before all tasks had.");
        }
    }
}

struct Listeners {
    main: Listener,
    webhook: Option<Listener>,
    metrics: Listener,
}

impl Listeners {
    async fn bind(args: &SchedulerArgs) -> anyhow::Result<Self> {
        Ok(Self {
            main: Listener::bind(&args.http_bind, "extender", "--http_bind").await?,
            webhook: match &args.webhook_bind {
                Some(address) => Some(Listener::bind(address, "webhook", "--webhook-bind").await?),
                None => None,
            },
            metrics: Listener::bind(&args.metrics_bind, "metrics page", "--metrics-bind-address").await?,
        })
    }
}

/// Runs the service until `stop`.
///
/// # Errors
/// As [`run`].
pub async fn run_until(args: SchedulerArgs, stop: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    let config = load_config(&args.device_config)?;
    let vendors = tessera_vendors::from_config_with(&config, &args.classes());
    if vendors.is_empty() {
        bail!(
            "the device configuration `{}` switches no device class on; add a section such as `nvidia: {{}}`",
            args.device_config
        );
    }
    let listeners = Listeners::bind(&args).await?;
    let client = connect(&client_settings(&args)).await?;

    // Serving ends first, the rest when the last request is answered.
    let background = CancellationToken::new();
    let mut conditions = vec!["synced", "api-server"];
    if args.makes_certificate() {
        conditions.push(certificate::CONDITION);
    }
    let health = Health::expecting(&conditions);
    let mut tasks = Tasks {
        set: JoinSet::new(),
        health: health.clone(),
    };

    let admit = admit::settings(&args, &vendors);
    let (books, inputs, keeper) = books::open(Arc::clone(&vendors), SteadyClock::default(), background.clone());
    tasks.spawn("books", keeper);
    let freshness = spawn_watches(&mut tasks, &client, &args, &inputs, &background);
    drop(inputs);
    let source = if args.scheduler_name.is_empty() {
        "tessera-scheduler"
    } else {
        &args.scheduler_name
    };
    let (recorder, recording) = events::record(client.clone(), source.to_owned(), background.clone());
    tasks.spawn("events", recording);
    let (reach, probing) = reach::probe(client.clone(), background.clone());
    tasks.spawn("api-server probe", probing);
    let role = spawn_campaign(&mut tasks, &client, &args, source, &background);

    let sighting = (args.leader_elect && !args.lease_name.is_empty())
        .then(|| Sighting::new(client.clone(), &args.lease_namespace, &args.lease_name, host_name()));
    let app = App::new(
        Parts {
            engine: Engine::new(
                vendors,
                Defaults {
                    node_policy: args.node_policy,
                    card_policy: args.card_policy.clone(),
                },
            ),
            books: books.clone(),
            cluster: Cluster::new(client.clone(), args.node_lock_timeout),
            recorder,
            health: health.clone(),
            reach: reach.clone(),
            sighting,
        },
        Settings {
            filter_mode: args.filter_mode,
            write_at: args.write_at,
            assume_time: args.assume_time,
            sync_wait: SYNC_WAIT,
            lock_retry: args.node_lock_retry,
            admit,
        },
    );
    tasks.spawn("wake", Arc::clone(&app).wake_waiting(background.clone()));
    tasks.spawn("troubles", Arc::clone(&app).tell_troubles(background.clone()));
    tasks.spawn(
        "readiness",
        keep_readiness(health.clone(), books, reach, background.clone()),
    );

    let given = given_certificate(&args, &mut tasks, &background)?;
    let client_ca = match &args.client_ca_file {
        Some(path) => Some(std::fs::read(path).with_context(|| format!("reading the client CA `{}`", path.display()))?),
        None => None,
    };
    let own = Certificate::default();
    if args.makes_certificate() {
        let keeper = certificate::Keeper {
            client: client.clone(),
            namespace: args.namespace.clone(),
            secret: args.tls_secret.clone(),
            names: certificate_names(&args),
            configurations: args.webhook_configurations.clone(),
            certificate: own.clone(),
            health,
            role,
        };
        tasks.spawn("certificate", keeper.run(background.clone()));
    }

    let mut servers = JoinSet::new();
    let limits = Limits::default();
    let guard = if args.extender_allow_remote {
        Guard::Everybody
    } else {
        Guard::Near
    };
    let main_tls = given
        .as_ref()
        .map(|given| given.server_config(client_ca.as_deref()))
        .transpose()?;
    tracing::info!(address = %listeners.main.address(), tls = main_tls.is_some(), version = crate::VERSION, "Serve the extender.");
    servers.spawn(serve(
        listeners.main,
        main_tls,
        router(&app, Routes::All(guard)),
        limits,
        stop.clone(),
    ));
    if let Some(listener) = listeners.webhook {
        let tls = given.as_ref().unwrap_or(&own).server_config(None)?;
        tracing::info!(address = %listener.address(), "Serve the webhook.");
        servers.spawn(serve(
            listener,
            Some(tls),
            router(&app, Routes::Webhook),
            limits,
            stop.clone(),
        ));
    }
    let page = Arc::new(Page::new(&app, freshness, args.legacy_metrics));
    let metrics = metrics_router(page).merge(router(&app, Routes::Health));
    tracing::info!(address = %listeners.metrics.address(), "Serve metrics.");
    servers.spawn(serve(listeners.metrics, None, metrics, limits, stop.clone()));

    tasks.watch(&stop).await;
    while servers.join_next().await.is_some() {}
    background.cancel();
    tasks.finish(Duration::from_secs(5)).await;
    tracing::info!("Stopped.");
    Ok(())
}

fn client_settings(args: &SchedulerArgs) -> ClientSettings {
    ClientSettings {
        kubeconfig: args.kubeconfig.clone(),
        requests_per_second: args.kube_qps.filter(|rate| *rate > 0.0),
        burst: args.kube_burst,
    }
}

fn load_config(path: &str) -> anyhow::Result<DeviceConfig> {
    if path.is_empty() {
        let mut config = DeviceConfig::default();
        config.nvidia.get_or_insert_default();
        return Ok(config);
    }
    let text = std::fs::read_to_string(Path::new(path)).with_context(|| {
        format!(
            "cannot read the device configuration `{path}`; mount it there, or leave --device-config-file out for the \
             defaults"
        )
    })?;
    let config = DeviceConfig::from_yaml(&text)
        .with_context(|| format!("in the device configuration `{path}` (--device-config-file)"))?;
    for warning in &config.warnings {
        tracing::warn!(file = path, warning = %warning, "The device configuration has a setting without effect.");
    }
    Ok(config)
}

fn spawn_watches(
    tasks: &mut Tasks,
    client: &Client,
    args: &SchedulerArgs,
    inputs: &mpsc::Sender<Input>,
    stop: &CancellationToken,
) -> Vec<(&'static str, Freshness)> {
    let [pods, nodes, quotas] = [Freshness::default(), Freshness::default(), Freshness::default()];
    // A pod that has ended leaves the selection, which is told as its deletion: it holds nothing from then on.
    tasks.spawn(
        "pods",
        follow_owned(
            client,
            Some("status.phase!=Succeeded,status.phase!=Failed"),
            None,
            inputs,
            Input::Pod,
            &pods,
            stop,
        ),
    );
    let labels = args.node_labels.as_ref().map(crate::args::Labels::selector);
    tasks.spawn(
        "nodes",
        follow_owned(client, None, labels, inputs, Input::Node, &nodes, stop),
    );
    tasks.spawn(
        "quotas",
        follow_owned(client, None, None, inputs, Input::Quota, &quotas, stop),
    );
    vec![("pods", pods), ("nodes", nodes), ("resourcequotas", quotas)]
}

fn follow_owned<V: tessera_kube::objects::Kind>(
    client: &Client,
    fields: Option<&'static str>,
    labels: Option<String>,
    inputs: &mpsc::Sender<Input>,
    wrap: fn(tessera_kube::watch::Change<V>) -> Input,
    freshness: &Freshness,
    stop: &CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let (client, inputs, freshness, stop) = (client.clone(), inputs.clone(), freshness.clone(), stop.clone());
    async move { follow(client, fields, labels.as_deref(), inputs, wrap, freshness, stop).await }
}

fn spawn_campaign(
    tasks: &mut Tasks,
    client: &Client,
    args: &SchedulerArgs,
    name: &str,
    stop: &CancellationToken,
) -> watch::Receiver<Role> {
    if !args.leader_elect {
        let (sender, receiver) = watch::channel(Role::Leader);
        let stop = stop.clone();
        // The role ends with the process, so the sender lives as long.
        tasks.spawn("role", async move {
            stop.cancelled().await;
            drop(sender);
        });
        return receiver;
    }
    let identity = format!(
        "{}_{}_{}",
        host_name(),
        std::process::id(),
        jiff::Timestamp::now().as_nanosecond()
    );
    let settings = LeaseSettings::new(&args.namespace, format!("{name}-extender"), identity);
    let (role, campaigning) = campaign(client.clone(), settings, stop.clone());
    tasks.spawn("lease", campaigning);
    role
}

fn given_certificate(
    args: &SchedulerArgs,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Certificate>> {
    if args.cert_file.is_empty() {
        return Ok(None);
    }
    let certificate = Certificate::default();
    let following = certificate
        .follow_files(Path::new(&args.cert_file), Path::new(&args.key_file), stop.clone())
        .context(
            "the certificate of --cert_file and --key_file cannot be used; put a certificate and its key there, or leave \
             both out: with --webhook-bind one is made",
        )?;
    tasks.spawn("certificate files", following);
    Ok(Some(certificate))
}

fn certificate_names(args: &SchedulerArgs) -> Vec<String> {
    let (service, namespace) = (&args.webhook_service, &args.namespace);
    let mut names = vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.clone(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    names.extend(args.tls_dns_names.iter().cloned());
    names
}

async fn keep_readiness(
    health: Health,
    books: books::Books,
    mut reach: watch::Receiver<reach::Reach>,
    stop: CancellationToken,
) {
    let work = async {
        let synced = async {
            health.set("synced", Err("pods, nodes and quotas are being read".to_owned()));
            if books.wait_synced().await.is_ok() {
                health.set("synced", Ok(()));
            }
        };
        let reachable = async {
            loop {
                let state = reach.borrow_and_update().state.clone();
                health.set("api-server", state);
                if reach.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(synced, reachable);
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// The name kube-scheduler knows this machine (or pod) by.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: SchedulerArgs,
    }

    /// Arguments for a service on free ports whose API server is a port where nobody listens.
    fn args(folder: &Path, extra: &[&str]) -> SchedulerArgs {
        let kubeconfig = folder.join("kubeconfig");
        let text = "{apiVersion: v1, kind: Config, current-context: c, \
                    clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], \
                    contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}";
        std::fs::write(&kubeconfig, text).unwrap();
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        let words = [
            "scheduler",
            "--http_bind=127.0.0.1:0",
            "--metrics-bind-address=127.0.0.1:0",
            &kubeconfig,
        ];
        Cli::parse_from(words.iter().chain(extra)).args
    }

    async fn fails(extra: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path(), extra);
        format!("{:#}", run_until(args, CancellationToken::new()).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_start_that_cannot_work_names_what_to_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let taken = Listener::bind("127.0.0.1:0", "test", "--test").await.unwrap();
        let address = taken.address().to_string();
        let text = fails(&[&format!("--metrics-bind-address={address}")]).await;
        assert!(
            text.contains(&address) && text.contains("--metrics-bind-address"),
            "{text}"
        );

        let config = file("device-config.yaml", "nvidia:\n  resourceCountNam: nvidia.com/gpu\n");
        let text = fails(&[&format!("--device-config-file={config}")]).await;
        assert!(
            text.contains(&config) && text.contains("line 2") && text.contains("resourceCountName"),
            "{text}"
        );

        let config = file("empty.yaml", "iluvatars: []\n");
        let text = fails(&[&format!("--device-config-file={config}")]).await;
        assert!(text.contains("switches no device class on"), "{text}");

        let text = fails(&["--device-config-file=/no/such/file"]).await;
        assert!(
            text.contains("/no/such/file") && text.contains("--device-config-file"),
            "{text}"
        );

        let text = fails(&["--cert_file=/no/tls.crt", "--key_file=/no/tls.key"]).await;
        assert!(text.contains("/no/tls.crt") && text.contains("--cert_file"), "{text}");

        let text = fails(&["--kubeconfig=/no/kubeconfig"]).await;
        assert!(text.contains("/no/kubeconfig"), "{text}");
    }

    #[tokio::test]
    async fn without_an_api_server_it_lives_says_so_and_stops_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Listener::bind("127.0.0.1:0", "test", "--test").await.unwrap();
        let address = metrics.address();
        drop(metrics);
        let stop = CancellationToken::new();
        let bind = format!("--metrics-bind-address={address}");
        let args = args(folder.path(), &["--leader-elect", "--webhook-bind=127.0.0.1:0", &bind]);
        let service = tokio::spawn(run_until(args, stop.clone()));
        let ask = async |path: &str| {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match ask("/readyz").await {
                    Ok(answer) if answer.contains("api-server: asking for its version") => return answer,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let answer = answer.await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("synced: ") && answer.contains("certificate: "),
            "{answer}"
        );
        assert!(ask("/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(ask("/metrics").await.unwrap().contains("tessera_ready 0"));
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), service)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
