package dev.finial.interop;

import io.spiffe.bundle.jwtbundle.JwtBundleSet;
import io.spiffe.exception.JwtSvidException;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Asks a Workload API for X.509 material and JWT-SVIDs through java-spiffe and prints one JSON object with
 * what it saw. The socket comes from SPIFFE_ENDPOINT_SOCKET; the argument is how many updates to wait for.
 */
public final class Client {
  public static void main(String[] args) throws Exception {
    int wanted = args.length > 0 ? Integer.parseInt(args[0]) : 1;
    try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
      X509Context fetched = client.fetchX509Context();
      for (X509Svid svid : fetched.getX509Svids()) {
        X509SvidValidator.verifyChain(svid.getChain(), fetched.getX509BundleSet());
      }

      List<String> updates = new CopyOnWriteArrayList<>();
      CountDownLatch latch = new CountDownLatch(wanted);
      client.watchX509Context(
          new Watcher<X509Context>() {
            @Override
            public void onUpdate(X509Context context) {
              updates.add(look(context));
              latch.countDown();
            }

            @Override
            public void onError(Throwable error) {
              System.err.println(error);
            }
          });
      if (!latch.await(60, TimeUnit.SECONDS)) {
        System.err.println(updates.size() + " of " + wanted + " updates came in time");
        System.exit(1);
      }
      System.out.println(
          "{\"fetched\":" + look(fetched) + ",\"updates\":[" + String.join(",", updates) + "],\"jwt\":" + jwt(client) + "}");
    }
    System.exit(0);
  }

  /** Tokens for two audiences, judged here by the bundle and by the agent; and a refusal. */
  private static String jwt(WorkloadApiClient client) throws Exception {
    List<JwtSvid> svids = client.fetchJwtSvids("reports", "billing");
    JwtBundleSet bundles = client.fetchJwtBundles();
    List<String> ids = new ArrayList<>();
    List<String> verified = new ArrayList<>();
    List<String> validated = new ArrayList<>();
    for (JwtSvid svid : svids) {
      ids.add(quoted(svid.getSpiffeId()));
      verified.add(
          quoted(JwtSvid.parseAndValidate(svid.getToken(), bundles, Set.of("reports")).getSpiffeId()));
      validated.add(quoted(client.validateJwtSvid(svid.getToken(), "billing").getSpiffeId()));
    }
    JwtSvid one =
        client.fetchJwtSvid(svids.get(svids.size() - 1).getSpiffeId(), "reports", "billing");
    String refused = "";
    try {
      client.validateJwtSvid(one.getToken(), "other");
    } catch (JwtSvidException error) {
      refused = String.valueOf(error.getCause() == null ? error.getMessage() : error.getCause().getMessage());
    }
    List<String> keys = new ArrayList<>();
    for (var bundle : bundles.getBundles().entrySet()) {
      keys.add(quoted(bundle.getKey().getName()) + ":" + bundle.getValue().getJwtAuthorities().size());
    }
    return "{\"ids\":[" + String.join(",", ids)
        + "],\"one\":" + quoted(one.getSpiffeId())
        + ",\"verified\":[" + String.join(",", verified)
        + "],\"validated\":[" + String.join(",", validated)
        + "],\"refused\":" + quoted(refused)
        + ",\"keys\":{" + String.join(",", keys) + "}}";
  }

  private static String quoted(Object text) {
    return '"' + text.toString().replace("\\", "\\\\").replace("\"", "\\\"") + '"';
  }

  private static String look(X509Context context) {
    StringBuilder out = new StringBuilder("{\"svids\":[");
    String comma = "";
    for (X509Svid svid : context.getX509Svids()) {
      out.append(comma)
          .append("{\"id\":\"").append(svid.getSpiffeId())
          .append("\",\"chain\":").append(svid.getChain().size())
          .append(",\"serial\":\"").append(svid.getLeaf().getSerialNumber())
          .append("\",\"hint\":\"").append(svid.getHint() == null ? "" : svid.getHint())
          .append("\"}");
      comma = ",";
    }
    out.append("],\"bundles\":{");
    comma = "";
    for (var bundle : context.getX509BundleSet().getBundles().entrySet()) {
      out.append(comma)
          .append('"').append(bundle.getKey().getName()).append("\":")
          .append(bundle.getValue().getX509Authorities().size());
      comma = ",";
    }
    return out.append("}}").toString();
  }
}
