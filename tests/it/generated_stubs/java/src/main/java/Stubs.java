import io.github.dipylon.v1.ApprovalServiceGrpc;
import io.github.dipylon.v1.GovernanceServiceGrpc;
import io.github.dipylon.v1.RequestTokenRequest;
import io.github.dipylon.v1.TaskServiceGrpc;
import io.github.dipylon.v1.TokenServiceGrpc;
import io.grpc.Channel;
import java.util.HexFormat;
import java.util.List;
import java.util.function.Function;

/** Reads a RequestTokenRequest in hex, checks it, and writes it again. Compiles the client of each service. */
final class Stubs {
    private static final List<Function<Channel, Object>> CLIENTS = List.of(
        TaskServiceGrpc::newBlockingStub,
        TokenServiceGrpc::newBlockingStub,
        ApprovalServiceGrpc::newBlockingStub,
        GovernanceServiceGrpc::newBlockingStub);

    public static void main(String[] arguments) throws Exception {
        var request = RequestTokenRequest.parseFrom(HexFormat.of().parseHex(arguments[0]));
        System.out.println(String.join(" ",
            String.valueOf(CLIENTS.size()),
            request.getAction().getTarget().getId(),
            String.valueOf(request.getAction().getParameters(0).getValue().getIntValue()),
            HexFormat.of().formatHex(request.toByteArray())));
    }
}
