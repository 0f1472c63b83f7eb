// Reads a RequestTokenRequest in hex, checks it, and writes it again. Says that the client of each service compiled.
package main

import (
	"encoding/hex"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/dipylon/dipylon/gen/dipylon/v1"
)

var clients = []any{
	func(c grpc.ClientConnInterface) pb.TaskServiceClient { return pb.NewTaskServiceClient(c) },
	func(c grpc.ClientConnInterface) pb.TokenServiceClient { return pb.NewTokenServiceClient(c) },
	func(c grpc.ClientConnInterface) pb.ApprovalServiceClient { return pb.NewApprovalServiceClient(c) },
	func(c grpc.ClientConnInterface) pb.GovernanceServiceClient { return pb.NewGovernanceServiceClient(c) },
}

func main() {
	bytes, err := hex.DecodeString(os.Args[1])
	if err != nil {
		panic(err)
	}
	var request pb.RequestTokenRequest
	if err := proto.Unmarshal(bytes, &request); err != nil {
		panic(err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(&request)
	if err != nil {
		panic(err)
	}
	fmt.Println(len(clients), request.Action.Target.Id, request.Action.Parameters[0].Value.GetIntValue(), hex.EncodeToString(again))
}
